// The picture with its forgery map: all of it in the browser, no round trip for a slider.

// Colours of the map from 0 to 1: dark violet, red, yellow. Readable on most photographs.
const COLOURS = [[68, 1, 84], [180, 30, 80], [240, 90, 40], [252, 255, 164]];

function colour(value) {
  const place = value / 255 * (COLOURS.length - 1);
  const below = Math.min(Math.floor(place), COLOURS.length - 2);
  const part = place - below;
  return COLOURS[below].map((low, i) => low + part * (COLOURS[below + 1][i] - low));
}

const TABLE = Array.from({ length: 256 }, (_, value) => colour(value));

export class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.map = null;
  }

  // image, map: Blobs of the same size.
  async load(image, map) {
    const [picture, values] = await Promise.all([createImageBitmap(image), createImageBitmap(map)]);
    this.canvas.width = picture.width;
    this.canvas.height = picture.height;
    this.image = picture;
    const hidden = new OffscreenCanvas(picture.width, picture.height);
    const context = hidden.getContext("2d");
    context.drawImage(values, 0, 0);
    this.map = context.getImageData(0, 0, picture.width, picture.height);
    this.overlay = hidden;
  }

  // opacity and threshold in [0, 1]; below the threshold the picture stays as it is.
  draw(opacity, threshold) {
    if (!this.map) return;
    const { width, height } = this.canvas;
    const drawn = new ImageData(width, height);
    const least = threshold * 255;
    for (let at = 0; at < drawn.data.length; at += 4) {
      const value = this.map.data[at];
      if (value <= least) continue;
      const [red, green, blue] = TABLE[value];
      drawn.data[at] = red;
      drawn.data[at + 1] = green;
      drawn.data[at + 2] = blue;
      drawn.data[at + 3] = 255 * opacity;
    }
    this.overlay.getContext("2d").putImageData(drawn, 0, 0);
    this.context.drawImage(this.image, 0, 0);
    this.context.drawImage(this.overlay, 0, 0);
  }
}
