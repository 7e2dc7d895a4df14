// The page: makes the parts and puts them together. Messages change models and ask for a frame; views paint models.

import { Account } from "./account.js";
import { BookView } from "./book-view.js";
import { CandleSet } from "./candles.js";
import { ChartView } from "./chart.js";
import { Circuits } from "./circuits.js";
import { Controls } from "./controls.js";
import { Failures } from "./failures.js";
import { Frames, byId, setText } from "./dom.js";
import { pair, price } from "./format.js";
import { bindKeys } from "./keyboard.js";
import { Market } from "./market.js";
import { loadNetwork } from "./network.js";
import { RegionPicker } from "./regions.js";
import { load, save } from "./storage.js";
import { SymbolList } from "./symbols.js";
import { Theme } from "./theme.js";
import { TickerView } from "./ticker.js";
import { TickmeshClient } from "./tickmesh.js";
import { TradesView } from "./trades.js";
import { Vitals } from "./vitals.js";

// Markets whose candles are kept after another is chosen.
const KEPT_CANDLES = 16;

const network = await loadNetwork();
const frames = new Frames();

/** @type {Market | null} */
let market = null;
/** @type {Map<string, CandleSet>} the latest last */
const candles = new Map();

const edgeOf = (url) => network.edges.find((edge) => edge.url === url);
/** The edges in the order they are tried: the chosen one, then the others. */
const urlsFrom = (chosen) => [chosen, ...network.edges.filter((edge) => edge !== chosen)].map(({ url }) => url);
const home =
  network.edges.find(({ name }) => name === load("edge")) ??
  network.edges.find(({ name }) => name === network.node) ??
  network.edges[0];

const controls = network.controls === null ? null : new Controls(network.controls);
// An edge knows who a client is from its handshake on.
const account = controls && new Account(controls, () => client.moveTo(urlsFrom(edgeOf(client.state.url) ?? home)));
const client = new TickmeshClient({
  urls: urlsFrom(home),
  token: account?.token,
  jwks: controls?.jwks,
  onState: (state) => showState(state),
  onRoundTrip: (ms) => vitals.roundTrip(ms),
});
const regions = new RegionPicker(network.edges, (edge) => {
  save("edge", edge.name);
  if (edge.url !== client.state.url || client.state.phase !== "online") client.moveTo(urlsFrom(edge));
});
const vitals = new Vitals(client, frames.ask, (ms) => regions.measured(ms));
const symbols = new SymbolList(select);
const ticker = new TickerView();
const chart = new ChartView(frames.ask);
const book = new BookView(frames.ask);
const trades = new TradesView(frames.ask);
const theme = new Theme(byId("theme"), () => chart.recolour());
const failures = controls && new Failures(controls, client, frames.ask);
const views = [ticker, chart, book, trades, vitals, ...(failures ? [failures] : [])];
for (const view of [...views, symbols]) frames.add(view);
if (account) {
  account.use(client, frames.ask);
  frames.add(account);
}
if (controls) frames.add(new Circuits(controls, frames.ask));

function showState(state) {
  const edge = edgeOf(state.url);
  const name = state.welcome?.node ?? edge?.name ?? state.url;
  const region = state.welcome?.region ?? edge?.region ?? "";
  failures?.state(state);
  vitals.state(state, region ? `${name} · ${region}` : name);
  regions.use(edge);
  frames.ask();
}

function select(symbol) {
  save("symbol", symbol);
  market?.close();
  const kept = candles.get(symbol) ?? new CandleSet();
  candles.delete(symbol);
  candles.set(symbol, kept);
  if (candles.size > KEPT_CANDLES) candles.delete(candles.keys().next().value);
  market = new Market(client, symbol, kept, (latencyMs) => {
    vitals.event(latencyMs);
    failures?.event();
    frames.ask();
  });
  market.ticker = symbols.ticker(symbol);
  for (const view of views) view.show(market);
  market.open();
  announce(symbol);
  frames.ask();
}

function announce(symbol) {
  const { base, quote } = pair(symbol);
  const last = symbols.ticker(symbol)?.price;
  setText(byId("announce"), `${base} ${quote} selected${last ? `, last price ${price(last)}` : ""}`);
}

function takeTickers({ data }) {
  const tickers = data?.tickers ?? {};
  symbols.update(tickers);
  vitals.event(null);
  if (!market) selectFirst();
  frames.ask();
}

function selectFirst() {
  const known = symbols.symbols;
  const first = known.includes(load("symbol")) ? load("symbol") : known[0];
  if (first) symbols.select(first);
}

function bindViews() {
  const desk = byId("desk");
  const buttons = [...document.querySelectorAll(".views button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      desk.dataset.view = button.dataset.view;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
  }
}

function bindHelp() {
  const help = byId("help");
  byId("help-open").addEventListener("click", () => help.showModal());
  // A click on the backdrop is a click on the dialog itself.
  help.addEventListener("click", (event) => {
    if (event.target === help) help.close();
  });
  return () => help.showModal();
}

bindViews();
bindKeys({
  moveMarket: (step) => symbols.move(step),
  search: () => symbols.focusSearch(),
  region: () => regions.show(),
  theme: () => theme.toggle(),
  help: bindHelp(),
  candles: (index) => chart.choose(index),
});
addEventListener("online", () => client.retryNow());
addEventListener("offline", () => showState(client.state));

symbols.add(network.symbols);
selectFirst();
client.subscribe(["ticker.global"], takeTickers);
client.connect();
