// docs/asyncapi.yaml as what it says of each message: one JSON Schema, and who sends it.

import { readFile } from "node:fs/promises";

import { DiagnosticSeverity, Parser } from "@asyncapi/parser";
import Ajv from "ajv";

const FILE = new URL("../../../docs/asyncapi.yaml", import.meta.url);

export class Document {
  /** Reads the document with AsyncAPI's own parser, which follows every `$ref`; `faults` is what it finds wrong. */
  static async load() {
    const { document, diagnostics } = await new Parser().parse(await readFile(FILE, "utf8"));
    const faults = diagnostics
      .filter(({ severity }) => severity <= DiagnosticSeverity.Warning)
      .map(({ path, message }) => `${path.join(".")}: ${message}`);
    if (!document) throw new Error(`docs/asyncapi.yaml is no AsyncAPI document:\n${faults.join("\n")}`);
    return new Document(document.json(), faults);
  }

  constructor(json, faults) {
    const ajv = new Ajv({ strict: true, strictTypes: false, allowUnionTypes: true });
    // A note that the parser leaves in each schema.
    ajv.addKeyword("x-parser-schema-id");
    const { components, operations } = json;
    const { messages, "x-close-codes": closeCodes } = json.channels.ws;
    this.faults = faults;
    this.closeCodes = new Set(closeCodes.map(({ code }) => code));
    this.isHandshakeError = ajv.compile(components.schemas.HandshakeError);
    this.messages = new Map(
      Object.entries(messages).map(([name, { payload, examples }]) => [
        name,
        { accepts: ajv.compile(payload), examples: (examples ?? []).map((example) => example.payload) },
      ]),
    );
    // By whom they are sent; the parser has put the messages themselves where the operations refer to them.
    const nameOf = (message) => Object.keys(messages).find((name) => messages[name] === message);
    const named = (list) => list.map(nameOf);
    const all = Object.values(operations);
    const received = all.filter(({ action }) => action === "receive");
    const sent = all.filter(({ action }) => action === "send");
    this.ofClients = new Set(named(received.flatMap((operation) => operation.messages)));
    this.ofEdges = new Set(
      named([...sent.flatMap((operation) => operation.messages), ...received.flatMap(({ reply }) => reply.messages)]),
    );
  }

  /** The names of the messages among `candidates` that a frame is. */
  match(frame, candidates = this.messages.keys()) {
    return [...candidates].filter((name) => this.messages.get(name).accepts(frame));
  }
}
