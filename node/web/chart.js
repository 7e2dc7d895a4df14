// The price chart: candles and volume of the selected market, drawn by TradingView Lightweight Charts.

import { CandlestickSeries, ColorType, CrosshairMode, HistogramSeries, createChart } from "./vendor/lightweight-charts.js";
import { INTERVALS } from "./candles.js";
import { byId, make, setData, setText } from "./dom.js";
import { amount, clock, compact } from "./format.js";
import { load, save } from "./storage.js";

// The canvas is drawn ten times a second at most: candles do not need more, and the rest of the page does.
const DRAW_INTERVAL_MS = 100;

// Width of a candle with its space, and how many stay free beside the newest, and before the first.
const BAR_SPACING_PX = 9;
const FREE_BARS = 4;

const LABELS = new Map([[1, "1s"], [5, "5s"], [60, "1m"]]);

export class ChartView {
  #box = byId("chart");
  #empty = byId("chart-empty");
  #since = byId("chart-since");
  #legendBox = byId("legend");
  #legend = Object.fromEntries(
    ["open", "high", "low", "close", "volume"].map((name) => [name, byId(`legend-${name}`)]),
  );
  #chart;
  #price;
  #volume;
  #colours = {};
  #market = null;
  #seconds;
  #drawn = { list: null, version: -1, time: 0 };
  #drawnAt = 0;
  #timer = null;
  #places = -1;
  #filling = false;
  #hovered = null;
  #buttons = new Map();
  #askFrame;

  /** @param {() => void} askFrame */
  constructor(askFrame) {
    this.#askFrame = askFrame;
    const remembered = Number(load("interval"));
    this.#seconds = INTERVALS.includes(remembered) ? remembered : INTERVALS[0];
    this.#chart = createChart(this.#box, {
      autoSize: true,
      // The library's own logo brings an inline style, which a strict Content-Security-Policy refuses; the page has the
      // attribution and the link in its foot instead.
      layout: { attributionLogo: false, fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 11 },
      timeScale: {
        timeVisible: true, secondsVisible: true, rightOffset: FREE_BARS, barSpacing: BAR_SPACING_PX, minBarSpacing: 2,
        tickMarkFormatter: (time) => clock(time * 1000), borderVisible: false,
      },
      localization: { timeFormatter: (time) => clock(time * 1000) },
      rightPriceScale: { borderVisible: false, scaleMargins: { top: 0.1, bottom: 0.24 }, minimumWidth: 74 },
      crosshair: { mode: CrosshairMode.Normal },
    });
    this.#price = this.#chart.addSeries(CandlestickSeries, { borderVisible: false });
    this.#volume = this.#chart.addSeries(HistogramSeries, {
      priceScaleId: "volume", priceFormat: { type: "volume" }, lastValueVisible: false, priceLineVisible: false,
    });
    this.#volume.priceScale().applyOptions({ scaleMargins: { top: 0.84, bottom: 0 } });
    this.#chart.subscribeCrosshairMove(({ seriesData }) => {
      const candle = seriesData.get(this.#price);
      this.#hovered = candle ? { ...candle, volume: seriesData.get(this.#volume)?.value ?? 0 } : null;
      this.#paintLegend();
    });
    this.#makeButtons();
    this.recolour();
  }

  /** @param {import("./market.js").Market} market */
  show(market) {
    this.#market = market;
    this.#hovered = null;
    this.#drawn = { list: null, version: -1, time: 0 };
    this.#drawnAt = 0;
    this.#places = -1;
    this.#price.setData([]);
    this.#volume.setData([]);
    this.#empty.hidden = false;
    setText(this.#since, "");
    for (const node of Object.values(this.#legend)) setText(node, "–");
    this.#chart.priceScale("right").setAutoScale(true);
  }

  /** Candle length by its place: 0 is the shortest. @param {number} index */
  choose(index) {
    const seconds = INTERVALS[index];
    if (seconds === undefined || seconds === this.#seconds) return;
    this.#seconds = seconds;
    save("interval", String(seconds));
    for (const [key, button] of this.#buttons) check(button, key === seconds);
    if (this.#market) this.show(this.#market);
    this.#askFrame();
  }

  /** Takes the colours of the page's theme. */
  recolour() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.#colours = { up: colour("up-volume"), down: colour("down-volume") };
    const [up, down, line, muted] = ["up-candle", "down-candle", "grid", "muted"].map(colour);
    this.#chart.applyOptions({
      layout: { background: { type: ColorType.Solid, color: colour("panel") }, textColor: muted },
      grid: { vertLines: { color: line }, horzLines: { color: line } },
      crosshair: {
        vertLine: { color: muted, labelBackgroundColor: colour("label") },
        horzLine: { color: muted, labelBackgroundColor: colour("label") },
      },
    });
    this.#price.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down });
    this.#drawn.list = null;
    this.#drawn.version = -1;
    this.#drawnAt = 0;
    this.#askFrame();
  }

  paint() {
    const candles = this.#market?.candles.of(this.#seconds);
    if (!candles || candles.list.length === 0) return;
    if (candles.list === this.#drawn.list && candles.version === this.#drawn.version) return;
    const wait = this.#drawnAt + DRAW_INTERVAL_MS - performance.now();
    if (wait > 0) {
      this.#timer ??= setTimeout(() => {
        this.#timer = null;
        this.#askFrame();
      }, wait);
      return;
    }
    this.#drawnAt = performance.now();
    this.#draw(candles);
  }

  #draw(candles) {
    this.#precision();
    const { list } = candles;
    if (list !== this.#drawn.list) {
      this.#empty.hidden = true;
      this.#price.setData(list);
      this.#volume.setData(list.map((candle) => this.#bar(candle)));
      this.#place(list.length);
      setText(this.#since, `Live trades since ${clock(this.#market.candles.since)}`);
    } else {
      let from = list.length - 1;
      while (from > 0 && list[from].time > this.#drawn.time) from -= 1;
      for (const candle of list.slice(from)) {
        this.#price.update(candle);
        this.#volume.update(this.#bar(candle));
      }
      if (this.#filling && list.length >= this.#slots() - 2 * FREE_BARS) this.#follow();
    }
    this.#drawn = { list, version: candles.version, time: list.at(-1).time };
    if (!this.#hovered) this.#paintLegend();
  }

  /** Few candles begin at the left and fill the chart; from then on it follows the newest. */
  #place(length) {
    const slots = this.#slots();
    if (length >= slots - 2 * FREE_BARS) {
      this.#follow();
      this.#chart.timeScale().resetTimeScale();
      return;
    }
    this.#filling = true;
    this.#chart.timeScale().applyOptions({ shiftVisibleRangeOnNewBar: false });
    this.#chart.timeScale().setVisibleLogicalRange({ from: -FREE_BARS, to: slots - FREE_BARS });
  }

  #follow() {
    this.#filling = false;
    this.#chart.timeScale().applyOptions({ shiftVisibleRangeOnNewBar: true });
  }

  #slots() {
    return Math.max(Math.floor(this.#chart.timeScale().width() / BAR_SPACING_PX), FREE_BARS * 2);
  }

  #bar({ time, open, close, volume }) {
    return { time, value: volume, color: close < open ? this.#colours.down : this.#colours.up };
  }

  #precision() {
    const places = this.#market.pricePlaces.value;
    if (places === this.#places) return;
    this.#places = places;
    this.#price.applyOptions({
      priceFormat: { type: "custom", minMove: 10 ** -places, formatter: (value) => amount(value, places) },
    });
  }

  #paintLegend() {
    const candle = this.#hovered ?? this.#market?.candles.of(this.#seconds).list.at(-1);
    if (!candle) return;
    for (const name of ["open", "high", "low", "close"]) {
      setText(this.#legend[name], amount(candle[name], Math.max(this.#places, 0)));
    }
    setText(this.#legend.volume, compact(candle.volume));
    setData(this.#legendBox, "direction", candle.close < candle.open ? -1 : 1);
  }

  #makeButtons() {
    const group = byId("intervals");
    INTERVALS.forEach((seconds, index) => {
      const attributes = { type: "button", role: "radio", "aria-keyshortcuts": String(index + 1) };
      const button = make("button", "", attributes, LABELS.get(seconds));
      check(button, seconds === this.#seconds);
      button.addEventListener("click", () => this.choose(index));
      this.#buttons.set(seconds, button);
      group.append(button);
    });
    group.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const count = INTERVALS.length;
      this.choose((INTERVALS.indexOf(this.#seconds) + step + count) % count);
      this.#buttons.get(this.#seconds).focus();
    });
  }
}

function check(button, checked) {
  button.setAttribute("aria-checked", String(checked));
  button.tabIndex = checked ? 0 : -1;
}
