// Which edges there are, and what they trade: `network.json`, served beside the page.

/**
 * @typedef {{ name: string, region: string, title: string, url: string }} Edge
 * @typedef {{ node: string, region: string, edges: Edge[], symbols: string[], controls: string | null }} Network
 *   controls: where a demo signs its users in
 */

/**
 * Reads `network.json`. Without one the page still works: its own host is the only edge, and the symbols are learnt from
 * `ticker.global`.
 *
 * @returns {Promise<Network>}
 */
export async function loadNetwork() {
  try {
    const response = await fetch("network.json", { cache: "no-store" });
    if (response.ok) return complete(await response.json());
  } catch {
    // Not reachable, or no JSON: as if it did not exist.
  }
  return ownHost();
}

function complete(raw) {
  const edges = (Array.isArray(raw.edges) ? raw.edges : []).filter((edge) => typeof edge?.url === "string");
  if (edges.length === 0) return { ...ownHost(), symbols: texts(raw.symbols) };
  return {
    node: String(raw.node ?? ""),
    region: String(raw.region ?? ""),
    edges: edges.map(({ name, region, title, url }) => ({
      name: String(name ?? url),
      region: String(region ?? ""),
      title: String(title ?? region ?? name ?? url),
      url,
    })),
    symbols: texts(raw.symbols),
    controls: typeof raw.controls === "string" ? raw.controls : null,
  };
}

function ownHost() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const edge = { name: location.host, region: "", title: "This edge", url: `${scheme}://${location.host}/ws` };
  return { node: "", region: "", edges: [edge], symbols: [], controls: null };
}

function texts(list) {
  return (Array.isArray(list) ? list : []).filter((item) => typeof item === "string");
}
