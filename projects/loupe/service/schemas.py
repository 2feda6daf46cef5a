"""What the API tells, as OpenAPI describes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from loupe.service.store import Record, State


class Error(BaseModel):
    """Why there is no prediction."""

    error: str = Field(description="One sentence: what, and the remedy")
    id: str | None = Field(None, description="Of the prediction that failed, if one was begun")


class Region(BaseModel):
    """A connected part of the forgery map above one half, in pixels of the upright image."""

    number: int
    left: int
    top: int
    right: int = Field(description="Excluded")
    bottom: int = Field(description="Excluded")
    pixels: int
    mean: float = Field(description="Mean of the forgery map inside")


class Fact(BaseModel):
    """A measured fact."""

    name: str
    value: float | str | None
    unit: str
    percentile: float | None = Field(
        description="Percentage of regions of authentic photographs that differ less"
    )
    sentence: str
    region: int | None = Field(description="Number of the region; null = the whole image")


class Text(BaseModel):
    """What a language model wrote of the prediction; nothing in it was measured."""

    text: str
    complete: bool = Field(description="False = it was cut at its greatest length")
    warnings: list[str] = Field(description="Where it contradicts the map or the verdict")


class Result(BaseModel):
    """The prediction of a finished image."""

    probability: float = Field(description="That the image is forged, in [0, 1]")
    verdict: Literal["authentic", "forged", "undecided", ""]
    class_name: str = Field("", alias="class", description="Most probable; empty without classes")
    class_probabilities: dict[str, float] = Field({}, description="By name; empty without classes")
    reasons: list[str] = Field(description="Why it is undecided")
    warnings: list[str] = Field(description="What must be said of the file")
    width: int
    height: int
    regions: list[Region]
    facts: list[Fact]
    text: Text | None = Field(None, description="null unless the service was told to write")


class Links(BaseModel):
    """Where the pictures of a finished prediction are."""

    self: str
    map: str | None = None
    mask: str | None = None
    preview: str | None = None
    preview_map: str | None = None
    report: str | None = None


class Prediction(BaseModel):
    """An image on its way, or at its end."""

    id: str
    file: str = Field(description="Name that the client gave")
    state: State
    created: float = Field(description="Seconds since 1970")
    finished: float | None
    position: int | None = Field(None, description="Images that wait before this one")
    error: str = Field("", description="Why there is no prediction")
    result: Result | None
    links: Links


class Health(BaseModel):
    """Whether images can be predicted now."""

    status: Literal["ok", "starting", "stopping"]
    waiting: int = Field(description="Images in the queue")
    places: int = Field(description="Images that may wait")
    ready_workers: int
    workers: int


class Model(BaseModel):
    """Which model predicts, and within which limits."""

    model: dict[str, Any]
    max_bytes: int
    max_pixels: int
    max_seconds: float
    keep_days: float


def prediction_of(record: Record, position: int | None = None) -> Prediction:
    """A row of the store as the API tells it."""
    place = f"/v1/predictions/{record.id}"
    links = Links(self=place)
    if record.state is State.DONE:
        links = Links(
            self=place,
            map=f"{place}/map.png",
            mask=f"{place}/mask.png",
            preview=f"{place}/preview.jpg",
            preview_map=f"{place}/preview_map.png",
            report=f"{place}/report",
        )
    return Prediction(
        id=record.id,
        file=record.file,
        state=record.state,
        created=record.created,
        finished=record.finished,
        position=position,
        error=record.error,
        result=Result(**record.result) if record.state is State.DONE else None,
        links=links,
    )
