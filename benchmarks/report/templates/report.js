"use strict";
(async () => {
  const content = (id) => document.getElementById(id).textContent;
  // What is large and is no picture is compressed.
  async function unpacked(id) {
    const bytes = Uint8Array.from(atob(content(id)), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  const page = JSON.parse(content("page-data"));
  const raw = { "results-data": await unpacked("results-data"), "log-data": await unpacked("log-data") };
  const results = JSON.parse(raw["results-data"]), log = JSON.parse(raw["log-data"]);
  const names = Object.keys(page.styles);
  const hidden = new Set();
  let axis = "queries"; // the horizontal axis that the reader has chosen, for charts that have it

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const colour = (name, light) => light ? page.styles[name].light : `var(--line-${names.indexOf(name)})`;

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return size !== 0 && size < 0.01 ? value.toExponential(2) : value.toFixed(3);
  }

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  function download(name, href) {
    const link = element("a");
    link.download = `${page.name}-${name}`;
    link.href = href;
    document.body.append(link);
    link.click();
    link.remove();
    if (href.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(href), 10000);
  }
  const text = (written, type) => URL.createObjectURL(new Blob([written], { type }));

  // -- curves --------------------------------------------------------------------------------------------------------

  const shown = (chart) => chart.spec.data.values.filter((row) => !hidden.has(row.name));
  const field = (chart) => axis in chart.axes ? axis : "x";
  const place = (chart, point) => point[field(chart)];
  const axisLabel = (chart) => chart.axes[field(chart)];
  const lines = (chart) => names.map((name) => [name, shown(chart).filter((row) => row.name === name)]).filter(([, points]) => points.length);

  const line = (spec) => spec.layer.find(({ mark }) => mark.type === "line");
  const dashes = (spec) => line(spec).encoding.strokeDash;

  // The chart's specification with the lines and the axis that the reader has chosen.
  function chosen(chart, width, height) {
    const spec = structuredClone(chart.spec), { x, color } = spec.encoding;
    spec.data.values = shown(chart);
    Object.assign(x, { field: field(chart), title: axisLabel(chart) });
    for (const { scale } of [color, dashes(spec)]) {
      scale.range = scale.range.filter((_, index) => !hidden.has(scale.domain[index]));
      scale.domain = scale.domain.filter((name) => !hidden.has(name));
    }
    return { ...spec, width, height, autosize: { type: "fit", contains: "padding" }, config: structuredClone(page.config) };
  }

  // In the page: its colours, light or dark, no title and legend of the chart's own, and marks at the place that is read.
  function onPage(chart, width, cursor) {
    const spec = chosen(chart, width, Math.round(Math.max(220, Math.min(320, width * 0.6))));
    const { color } = spec.encoding, { axis, axisX, axisY } = spec.config;
    delete spec.title;
    color.legend = dashes(spec).legend = null;
    color.scale.range = color.scale.domain.map((name) => colour(name));
    for (const { encoding } of spec.layer) if (encoding.y) encoding.y.title = null;
    for (const part of ["label", "title", "grid", "tick", "domain"]) axis[`${part}Color`] = "currentColor";
    Object.assign(axis, { tickOpacity: 0.4, domainOpacity: 0.4 });
    axisY.gridOpacity = 0.15;
    axisX.tickCount = Math.max(3, Math.round(width / 110));
    const data = { name: "cursor", values: cursor }, { y } = line(spec).encoding;
    spec.layer.push(
      { data, mark: { type: "rule", opacity: 0.25 }, encoding: { color: { value: "currentColor" } } },
      { data, mark: { type: "point", filled: true, size: 80, opacity: 1, stroke: "var(--card)" }, encoding: { y } },
    );
    return { ...spec, background: null, padding: 0 };
  }

  async function loadLibrary() {
    const script = element("script");
    script.textContent = await unpacked("library");
    document.head.append(script);
  }

  // Charts are drawn one after the other, from the top, and the page answers in between.
  let queue = document.querySelector(".chart") ? loadLibrary() : Promise.resolve();
  const inTurn = (draw) => { queue = queue.then(() => new Promise((done) => setTimeout(done))).then(draw).catch(console.error); };

  const quiet = { actions: false, defaultStyle: false, logLevel: 1, tooltip: false };

  function nearest(chart, points, x) {
    const away = (point) => Math.abs(place(chart, point) - x);
    return points.reduce((best, point) => away(point) < away(best) ? point : best);
  }

  const last = (values) => values[values.length - 1];
  // The points of a path follow each other in training, not along the axis.
  const isPath = (chart) => chart.spec.data.values.some(({ end }) => end);

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.data = page.charts[Number(figure.dataset.chart)];
      this.plot = figure.querySelector(".plot");
      this.readout = figure.querySelector(".readout");
      this.held = false;
      this.plot.tabIndex = 0;
      this.plot.setAttribute("role", "img");
      this.plot.addEventListener("pointermove", (event) => this.held || this.point(event));
      this.plot.addEventListener("click", (event) => this.hold(event));
      this.plot.addEventListener("pointerleave", () => this.held || this.select(null));
      this.plot.addEventListener("blur", () => this.held || this.select(null));
      this.plot.addEventListener("keydown", (event) => this.key(event));
      for (const button of figure.querySelectorAll("[data-save]")) {
        button.setAttribute("aria-label", `Download ${this.data.title}, ${this.data.label} as ${button.dataset.save.toUpperCase()}`);
        button.addEventListener("click", () => this.save(button.dataset.save));
      }
      // Inside a closed part of the page a chart has no width, and is drawn when that opens.
      new ResizeObserver(() => { if (this.plot.clientWidth && this.plot.clientWidth !== this.width) this.render(); }).observe(this.plot);
    }

    // A chart whose lines are all hidden leaves the page; one sentence stands in for all of them.
    render() {
      this.figure.hidden = lines(this.data).length === 0;
      this.width = this.plot.clientWidth;
      if (this.view) this.view.finalize();
      this.view = null;
      this.held = false;
      this.select(null);
      const turn = this.turn = {}; // a later call replaces it
      if (this.width) inTurn(() => this.turn === turn && this.draw());
    }

    async draw() {
      const { view } = await vegaEmbed(this.plot, onPage(this.data, this.width, this.points), { ...quiet, renderer: "svg" });
      this.view = view;
      const ends = lines(this.data).map(([name, points]) => `${name} ends at ${number(last(points).y)}`);
      this.plot.setAttribute("aria-label", `${this.data.title}: ${this.data.label} against ${axisLabel(this.data)}. ${ends.join(", ")}.`);
    }

    point(event) {
      if (!this.view) return;
      const box = this.plot.getBoundingClientRect();
      this.readout.classList.toggle("left", event.clientX > box.left + box.width / 2);
      this.select(this.view.scale("x").invert(event.clientX - box.left - this.view.origin()[0]));
    }

    // Values that are held can be clicked.
    hold(event) {
      this.held = !this.held;
      this.point(event);
    }

    key(event) {
      if (event.key === "Escape") { this.held = false; this.select(null); return; }
      const found = lines(this.data), all = found.flatMap(([, points]) => points.map((point) => place(this.data, point)));
      const steps = isPath(this.data) ? [...Array(Math.max(...found.map(([, points]) => points.length))).keys()] : [...new Set(all)].sort((a, b) => a - b);
      const end = steps.length - 1, here = this.at === null ? end : steps.findIndex((step) => step >= this.at);
      const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: end }[event.key];
      if (next === undefined || end < 0) return;
      event.preventDefault();
      const step = steps[Math.max(0, Math.min(end, next))];
      this.read(step, ([, points]) => isPath(this.data) ? points[step] || last(points) : nearest(this.data, points, step));
    }

    // Read every line at x; with null nothing is read.
    select(x) { this.read(x, ([, points]) => nearest(this.data, points, x)); }

    read(at, point) {
      this.at = at;
      this.points = at === null ? [] : lines(this.data).map(point);
      this.readout.hidden = at === null;
      this.readout.classList.toggle("held", this.held);
      this.readout.tBodies[0].replaceChildren(...this.points.map((point) => this.row(point)));
      if (this.view) this.view.data("cursor", this.points).run();
    }

    row(point) {
      const row = element("tr"), first = element("td"), value = element("td");
      first.append(swatch(point.name), point.name);
      value.append(traceable(number(point.y), point.origin));
      const x = place(this.data, point), at = field(this.data) === "x" ? number(x) : Math.round(x).toLocaleString("en");
      const across = point.x_low === undefined ? "" : `; ${axisLabel(this.data)} ${number(point.x_low)} to ${number(point.x_high)}`;
      row.title = point.note ? point.note + across : "";
      row.append(first, element("td", `${at}:`, "x"), value);
      row.append(element("td", point.low === undefined ? "" : `${number(point.low)} to ${number(point.high)}`, "band"));
      return row;
    }

    // As a file the chart is light whatever the page is, and has its title and its legend.
    async save(kind) {
      const file = `${this.data.name}.${kind}`, spec = { ...chosen(this.data, 720, 460), background: "white", padding: 12 };
      spec.title = { text: this.data.title, subtitle: `${this.data.label} against ${axisLabel(this.data)}` };
      const { view } = await vegaEmbed(element("div"), spec, { ...quiet, renderer: "svg" });
      download(file, kind === "svg" ? text(await view.toSVG(), "image/svg+xml") : await view.toImageURL("png", 2));
    }
  }

  function swatch(name) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    made.setAttribute("class", "swatch");
    made.setAttribute("viewBox", "0 0 24 8");
    made.setAttribute("aria-hidden", "true");
    const dash = page.styles[name].dash.length ? ' stroke-dasharray="6 3"' : "";
    made.innerHTML = `<line x1="0" y1="4" x2="24" y2="4" stroke="${colour(name)}" stroke-width="4"${dash}/>`;
    return made;
  }

  const charts = [...document.querySelectorAll(".chart")].map((figure) => new Chart(figure));
  for (const box of document.querySelectorAll("input[name=shown]")) {
    box.checked = true; // browsers restore a form's state on reload
    box.addEventListener("change", () => {
      box.checked ? hidden.delete(box.value) : hidden.add(box.value);
      document.getElementById("nothing").hidden = hidden.size < names.length;
      charts.forEach((chart) => chart.render());
    });
  }
  const select = document.querySelector("select[name=axis]");
  if (select) {
    select.value = axis;
    select.addEventListener("change", () => {
      axis = select.value;
      charts.forEach((chart) => chart.render());
    });
  }

  // -- where a number comes from -------------------------------------------------------------------------------------

  const dialog = document.getElementById("source");

  function traceable(shownText, origin) {
    const button = element("button", shownText, "number");
    button.type = "button";
    button.title = `${origin.path} (${origin.how})`;
    button.dataset.origin = JSON.stringify(origin);
    return button;
  }

  // A metric's own name may hold dots, so it is looked up whole.
  function inside(evaluation, field) {
    const [first, ...rest] = field.split(".");
    if (rest.length === 0 || evaluation[field] !== undefined) return evaluation[field];
    if (first === "held_out" || first === "deployed") return inside(evaluation[first], rest.join("."));
    return evaluation[first][rest.join(".")];
  }

  function places(origin) {
    if (origin.log !== undefined) return [["metrics.jsonl", log[origin.log][origin.field]]];
    return origin.runs.map((run, index) => {
      const at = origin.evaluations[index], found = inside(results.runs[run].evaluations[at], origin.field);
      return [`runs[${run}].evaluations[${at}].${origin.field} (${results.runs[run].folder || "run"})`, found];
    });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".number");
    if (!button) return;
    const origin = JSON.parse(button.dataset.origin), values = dialog.querySelector(".values");
    dialog.querySelector(".title").textContent = origin.path;
    dialog.querySelector(".how").textContent = `${button.textContent}: ${origin.how}.`;
    values.replaceChildren();
    for (const [name, value] of places(origin)) {
      const many = Array.isArray(value) ? `, ${value.length} values, mean ${mean(value)}` : "";
      values.append(element("p", name + many, "note"), element("pre", JSON.stringify(value)));
    }
    dialog.showModal();
  });

  // -- pictures over training ----------------------------------------------------------------------------------------

  const enlarged = document.getElementById("enlarged");
  let open = null; // the gallery, the row and the picture that are enlarged

  // Show one picture of a frame: its pictures stand beside each other.
  function showTile(tile, frame, at, count) {
    tile.style.backgroundImage = `url("${frame.picture}")`;
    tile.style.backgroundSize = `${100 * count}% 100%`;
    tile.style.backgroundPosition = `${count > 1 ? 100 * at / (count - 1) : 0}% 0`;
  }

  const loaded = (address) => new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = address;
  });
  const address = (file) => file.split("/").map(encodeURIComponent).join("/");

  class Gallery {
    constructor(block) {
      this.data = page.galleries[Number(block.dataset.gallery)];
      this.slider = block.querySelector("input[type=range]");
      this.where = block.querySelector(".where");
      this.button = block.querySelector(".play");
      this.rows = [...block.querySelectorAll(".row")];
      const { positions, best } = this.data, away = (queries) => Math.abs(queries - (best ?? Infinity));
      const opened = best === null ? positions.length - 1 : positions.findIndex((queries) => away(queries) === Math.min(...positions.map(away)));
      this.slider.value = opened || positions.length - 1; // a start beside itself would show nothing
      this.slider.addEventListener("input", () => { this.pause(); this.show(); });
      this.button.addEventListener("click", () => this.timer ? this.pause() : this.play());
      this.rows.forEach((figure, row) => {
        figure.querySelector(".tiles").append(...this.data.rows[row].prompts.map((prompt, at) => this.tile(row, prompt, at)));
        figure.querySelector("[data-save]").addEventListener("click", () => this.save(row));
        figure.querySelector("[data-save]").setAttribute("aria-label", `Download the pictures of ${this.data.rows[row].algorithm} as PNG`);
      });
      this.show();
    }

    // One prompt: the picture before training, the one at the slider, and the prompt.
    tile(row, prompt, at) {
      const { frames, prompts, size } = this.data.rows[row];
      const item = element("li"), button = element("button", undefined, "enlarge");
      button.type = "button";
      button.setAttribute("aria-label", `Enlarge ${prompt || `picture ${at + 1}`}, ${this.data.rows[row].algorithm}`);
      for (const side of ["before", "now"]) {
        const picture = element("span", undefined, `picture ${side}`);
        picture.style.aspectRatio = `${size[1]} / ${size[0]}`;
        button.append(picture);
      }
      showTile(button.querySelector(".before"), frames[0], at, prompts.length);
      button.addEventListener("click", () => enlarge(this, row, at));
      item.append(button, element("span", prompt, "prompt"));
      return item;
    }

    get queries() { return this.data.positions[Number(this.slider.value)]; }

    frame(row) {
      const until = this.data.rows[row].frames.filter((frame) => frame.queries <= this.queries);
      return last(until) || this.data.rows[row].frames[0];
    }

    evaluation(row, frame = this.frame(row)) { return results.runs[this.data.rows[row].run].evaluations[frame.evaluation]; }

    // A run that has not come as far as the slider shows its last pictures, and says so.
    state(row) {
      const { queries } = this.frame(row);
      return queries === this.queries ? "" : `at ${queries.toLocaleString("en")} queries`;
    }

    show() {
      this.where.textContent = `after ${this.queries.toLocaleString("en")} of ${last(this.data.positions).toLocaleString("en")} reward queries`;
      this.slider.setAttribute("aria-valuetext", this.where.textContent);
      this.rows.forEach((figure, row) => {
        const { prompts } = this.data.rows[row], frame = this.frame(row);
        figure.querySelectorAll(".now").forEach((tile, at) => showTile(tile, frame, at, prompts.length));
        figure.querySelector(".state").textContent = this.state(row);
      });
      if (open && open.gallery === this) showEnlarged();
    }

    play() {
      if (Number(this.slider.value) === Number(this.slider.max)) this.slider.value = 0;
      this.button.textContent = "❚❚";
      this.show();
      this.timer = setInterval(() => {
        if (Number(this.slider.value) === Number(this.slider.max)) return this.pause();
        this.slider.value = Number(this.slider.value) + 1;
        this.show();
      }, 700);
    }

    pause() {
      clearInterval(this.timer);
      this.timer = null;
      this.button.textContent = "▶";
    }

    // The pictures before, and below them those at the slider.
    async save(row) {
      const { frames, algorithm } = this.data.rows[row], frame = this.frame(row), canvas = element("canvas");
      const both = await Promise.all([frames[0], frame].map(({ picture }) => loaded(picture)));
      canvas.width = both[0].naturalWidth;
      canvas.height = both[0].naturalHeight + both[1].naturalHeight;
      both.forEach((image, below) => canvas.getContext("2d").drawImage(image, 0, below * both[0].naturalHeight));
      const file = `${this.data.name}-${algorithm}-${frame.queries}.png`;
      canvas.toBlob((blob) => download(file, URL.createObjectURL(blob)), "image/png");
    }
  }

  const largeSlider = enlarged.querySelector("input");

  function enlarge(gallery, row, at) {
    open = { gallery, row, at };
    largeSlider.max = gallery.slider.max;
    enlarged.showModal();
    showEnlarged();
    largeSlider.focus();
  }

  // Draw one picture of a frame; first the page's own, and where that is smaller or compressed, then the file's, if it is there.
  async function drawLarge(canvas, row, frame, at) {
    const { size, full, places, exact, columns } = row, shown = canvas.shown = {}, gap = 2; // gap: between a file's pictures
    const draw = (image, [height, width], left, top) => {
      if (canvas.shown !== shown) return; // the reader has moved on
      Object.assign(canvas, { width, height });
      canvas.getContext("2d").drawImage(image, left, top, width, height, 0, 0, width, height);
    };
    draw(await loaded(frame.picture), size, at * size[1], 0);
    if (exact) return;
    const column = places[at] % columns, line = Math.floor(places[at] / columns);
    try {
      draw(await loaded(address(frame.file)), full, column * (full[1] + gap), line * (full[0] + gap));
    } catch { /* the page stands alone: its own picture stays */ }
  }

  function showEnlarged() {
    const { gallery, row, at } = open, data = gallery.data.rows[row], now = gallery.frame(row);
    const labels = ["before", `after ${now.queries.toLocaleString("en")} queries`];
    enlarged.querySelectorAll(".canvas figure").forEach((figure, side) => {
      const frame = side ? now : data.frames[0], reward = gallery.evaluation(row, frame).rewards[data.places[at]];
      const canvas = figure.querySelector("canvas"), caption = `${labels[side]}: reward ${number(reward)}`;
      canvas.setAttribute("aria-label", `${data.prompts[at]}, ${caption}`);
      canvas.classList.toggle("small", data.full[1] <= 128);
      figure.querySelector("figcaption").textContent = caption;
      drawLarge(canvas, data, frame, at).catch(console.error);
    });
    const link = element("a", now.file);
    link.href = address(now.file);
    enlarged.querySelector(".original").replaceChildren("all pictures, as they were written: ", link);
    largeSlider.value = gallery.slider.value;
    enlarged.querySelector(".title").textContent = `${data.prompts[at] || `Picture ${at + 1}`} (${data.algorithm}, ${gallery.data.task})`;
    enlarged.querySelector(".where").textContent = gallery.where.textContent;
  }

  largeSlider.addEventListener("input", () => {
    open.gallery.slider.value = largeSlider.value;
    open.gallery.pause();
    open.gallery.show();
  });
  for (const [name, step] of [["previous", -1], ["next", 1]]) {
    enlarged.querySelector(`.${name}`).addEventListener("click", () => {
      const count = open.gallery.data.rows[open.row].prompts.length;
      open.at = (open.at + step + count) % count;
      showEnlarged();
    });
  }
  enlarged.addEventListener("close", () => { open = null; });
  for (const box of document.querySelectorAll("dialog")) {
    box.querySelector(".close").addEventListener("click", () => box.close());
    box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
  }
  document.querySelectorAll(".gallery").forEach((block) => new Gallery(block));

  // -- raw data ------------------------------------------------------------------------------------------------------

  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => download(button.dataset.name, text(raw[button.dataset.download], "application/json")));
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const code = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // browsers may refuse the clipboard to a page opened from a file
      }
    });
  }
})();
