// A list of which only what is near the view is in the document, with items of any height.
//
// Heights are measured as items appear, and guessed until then. What changes above the view moves nothing in it, and a view that is at
// the end stays there while the list grows.
import { Component } from "preact";
import { useEffect, useLayoutEffect, useReducer, useRef } from "preact/hooks";
import { html, IconButton } from "./ui.js";
import { t } from "./words.js";

const BEYOND = 1000; // pixels above and below the view
const NEAR = 60; // pixels from the end that count as the end

/** An item, which is drawn anew by itself and not because the list is. */
class Row extends Component {
  shouldComponentUpdate(next) {
    return next.item !== this.props.item;
  }

  componentDidMount() {
    this.props.observer.observe(this.element);
  }

  componentWillUnmount() {
    this.props.observer.unobserve(this.element);
  }

  render({ item, draw }) {
    return html`<div class="row-of-list" ref=${(element) => (this.element = element ?? this.element)} data-key=${item.id}>${draw(item)}</div>`;
  }
}

class Geometry {
  constructor() {
    this.heights = new Map();
    this.offsets = new Float64Array(1);
    this.items = [];
    this.pinned = true;
    this.anchor = null; // the first item in view, and how far it is above the edge
    this.top = 0;
    this.start = 0;
    this.end = 0;
  }

  measure(items, guess) {
    this.items = items;
    if (this.offsets.length < items.length + 1) this.offsets = new Float64Array(items.length + 200);
    for (let at = 0; at < items.length; at += 1) {
      this.offsets[at + 1] = this.offsets[at] + (this.heights.get(items[at].id) ?? guess(items[at]));
    }
    this.total = this.offsets[items.length];
  }

  /** The item at a height. */
  at(y) {
    let low = 0;
    let high = this.items.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.offsets[middle] <= y) low = middle;
      else high = middle - 1;
    }
    return Math.max(0, low);
  }

  choose(top, height) {
    this.start = this.at(Math.max(0, top - BEYOND));
    this.end = Math.min(this.items.length, this.at(top + height + BEYOND) + 1);
    const first = this.at(top);
    this.anchor = this.items[first] && { id: this.items[first].id, above: top - this.offsets[first] };
  }
}

/** `items` have an `id`; `draw(item)` gives what is shown, `guess(item)` its height in pixels until it is known. */
export function Windowed({ items, draw, guess, label, target }) {
  const root = useRef();
  const box = useRef();
  const geometry = useRef(null);
  geometry.current ??= new Geometry();
  const now = geometry.current;
  const [, redraw] = useReducer((count) => count + 1, 0);
  const observer = useRef(null);
  const headHeight = () => box.current?.offsetTop ?? 0; // the room above the first item
  observer.current ??= new ResizeObserver((entries) => {
    let moved = 0;
    const top = now.top - headHeight();
    let changed = false;
    for (const { target: element, borderBoxSize } of entries) {
      const id = element.dataset.key;
      const height = borderBoxSize[0].blockSize;
      if (!element.isConnected || !height) continue;
      const at = now.items.findIndex((item) => item.id === id);
      const before = at < 0 ? height : now.offsets[at + 1] - now.offsets[at];
      if (Math.abs(before - height) < 0.5 && now.heights.has(id)) continue;
      now.heights.set(id, height);
      changed = true;
      if (at >= 0 && now.offsets[at] + Math.min(before, height) <= top) moved += height - before;
    }
    if (!changed || !root.current) return;
    now.measure(now.items, guess);
    if (now.pinned) toEnd();
    else if (moved) scroll(root.current.scrollTop + moved);
    now.choose(now.top - headHeight(), root.current.clientHeight);
    redraw();
  });

  const scroll = (top) => {
    root.current.scrollTop = top;
    now.top = root.current.scrollTop;
  };
  const toEnd = () => {
    if (!root.current) return;
    spacers();
    scroll(root.current.scrollHeight);
  };
  /** Room for what is not in the document, at once and not with the next drawing. */
  const spacers = () => {
    if (!box.current) return;
    box.current.style.paddingTop = `${now.offsets[now.start] ?? 0}px`;
    box.current.style.paddingBottom = `${Math.max(0, now.total - now.offsets[now.end])}px`;
  };

  if (now.items !== items) {
    now.measure(items, guess);
    if (root.current) now.choose(Math.max(0, now.pinned ? now.total - root.current.clientHeight : anchored(now)), root.current.clientHeight);
    else now.choose(Math.max(0, now.total - 900), 900);
  }
  now.end = Math.min(now.end, items.length);

  useLayoutEffect(() => {
    spacers();
    if (now.pinned) toEnd();
    else scroll(anchored(now) + headHeight());
  }, [items]);
  useLayoutEffect(spacers);
  useEffect(() => {
    const resized = new ResizeObserver(() => now.pinned && toEnd());
    resized.observe(root.current);
    return () => (resized.disconnect(), observer.current.disconnect());
  }, []);
  useEffect(() => {
    const at = target ? items.findIndex((item) => item.id === target) : -1;
    if (at < 0) return;
    now.pinned = false;
    let tries = 0;
    const aim = () => {
      if (!root.current) return;
      scroll(now.offsets[at] + headHeight() - 80);
      now.choose(now.top - headHeight(), root.current.clientHeight);
      redraw();
      if ((tries += 1) < 4) requestAnimationFrame(aim);
    };
    aim();
  }, [target, items.length > 0, target && items.some((item) => item.id === target)]);

  const onScroll = () => {
    if (!root.current) return;
    const { scrollTop, scrollHeight, clientHeight } = root.current;
    const left = scrollHeight - scrollTop - clientHeight;
    const wasPinned = now.pinned;
    if (left < 2) now.pinned = true;
    else if (scrollTop < now.top - 1) now.pinned = false;
    else if (left < NEAR) now.pinned = true;
    now.top = scrollTop;
    const { start, end } = now;
    now.choose(scrollTop - headHeight(), clientHeight);
    if (start !== now.start || end !== now.end || wasPinned !== now.pinned) redraw();
  };

  return html`
    <div class="list" ref=${root} onScroll=${onScroll} tabindex="0" role="log" aria-live="off" aria-label=${label}>
      <div ref=${box} class="list-box">
        ${items.slice(now.start, now.end).map((item) => html`<${Row} key=${item.id} item=${item} draw=${draw} observer=${observer.current} />`)}
      </div>
    </div>
    ${!now.pinned && html`<${IconButton} class="jump" icon="downward" label=${t("jump")} onClick=${() => ((now.pinned = true), toEnd(), onScroll(), redraw())} />`}`;
}

function anchored(now) {
  const at = now.anchor ? now.items.findIndex((item) => item.id === now.anchor.id) : -1;
  return at < 0 ? now.top : now.offsets[at] + now.anchor.above;
}
