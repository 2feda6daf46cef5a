// Shows openapi.json as headings and tables, without a script from another host.
const document_ = await (await fetch("/openapi.json")).json();
const place = document.getElementById("paths");

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function table(head, rows) {
  const made = document.createElement("table");
  const line = made.createTHead().insertRow();
  for (const text of head) line.append(element("th", text));
  const body = made.createTBody();
  for (const cells of rows) {
    const row = body.insertRow();
    for (const text of cells) row.append(element("td", text));
  }
  return made;
}

const nameOf = (schema) => (schema?.$ref || "").split("/").pop() || schema?.type || "";

for (const [path, methods] of Object.entries(document_.paths)) {
  for (const [method, told] of Object.entries(methods)) {
    place.append(element("h2", `${method.toUpperCase()} ${path}`));
    place.append(element("p", `${told.summary}. ${told.description || ""}`));
    if (told.parameters) {
      place.append(table(["parameter", "in", "meaning"],
        told.parameters.map((one) => [one.name, one.in, one.description || ""])));
    }
    place.append(table(["status", "meaning", "body"],
      Object.entries(told.responses).map(([status, one]) => [
        status, one.description,
        Object.entries(one.content || {}).map(([kind, body]) => nameOf(body.schema) || kind).join(", "),
      ])));
  }
}
for (const [name, schema] of Object.entries(document_.components.schemas)) {
  place.append(element("h2", name));
  place.append(element("p", schema.description || ""));
  place.append(table(["field", "type", "meaning"],
    Object.entries(schema.properties || {}).map(([field, one]) => [
      field, nameOf(one) || (one.anyOf || []).map(nameOf).join(" or "), one.description || "",
    ])));
}
