"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const page = read("page-data"), results = read("results-data"), log = read("log-data");
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
  const text = (content, type) => URL.createObjectURL(new Blob([content], { type }));

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
      { data, transform: [{ filter: "datum.moving" }], mark: { type: "rule", opacity: 0.25 }, encoding: { color: { value: "currentColor" } } },
      { data, mark: { type: "point", filled: true, size: 80, opacity: 1, stroke: "var(--card)" }, encoding: { y } },
    );
    return { ...spec, background: null, padding: 0 };
  }

  // Charts are drawn one after the other, from the top, and the page answers in between.
  let queue = Promise.resolve();
  const inTurn = (draw) => { queue = queue.then(() => new Promise((done) => setTimeout(done))).then(draw).catch(console.error); };

  const quiet = { actions: false, defaultStyle: false, logLevel: 1, tooltip: false };

  function nearest(chart, points, x) {
    const away = (point) => Math.abs(place(chart, point) - x);
    return points.reduce((best, point) => away(point) < away(best) ? point : best);
  }

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.data = page.charts[Number(figure.dataset.chart)];
      this.plot = figure.querySelector(".plot");
      this.readout = figure.querySelector(".readout tbody");
      this.plot.tabIndex = 0;
      this.plot.setAttribute("role", "img");
      this.plot.addEventListener("pointermove", (event) => this.point(event));
      this.plot.addEventListener("pointerdown", (event) => this.point(event));
      this.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.select(Infinity); });
      this.plot.addEventListener("keydown", (event) => this.key(event));
      for (const button of figure.querySelectorAll("[data-save]")) {
        button.setAttribute("aria-label", `Download ${this.data.title}, ${this.data.label} as ${button.dataset.save.toUpperCase()}`);
        button.addEventListener("click", () => this.save(button.dataset.save));
      }
      new ResizeObserver(() => { if (this.plot.clientWidth !== this.width) this.render(); }).observe(this.plot);
    }

    render() {
      this.width = this.plot.clientWidth;
      if (this.view) this.view.finalize();
      this.view = null;
      this.select(Infinity);
      const turn = this.turn = {}; // a later call replaces it
      inTurn(() => this.turn === turn && this.draw());
    }

    async draw() {
      if (this.points.length === 0) {
        this.plot.replaceChildren(element("p", "Every algorithm is hidden.", "note"));
        return;
      }
      const { view } = await vegaEmbed(this.plot, onPage(this.data, this.width, this.points), { ...quiet, renderer: "svg" });
      this.view = view;
      this.select(this.at);
      const ends = this.points.map(({ name, y }) => `${name} ends at ${number(y)}`);
      this.plot.setAttribute("aria-label", `${this.data.title}: ${this.data.label} against ${axisLabel(this.data)}. ${ends.join(", ")}.`);
    }

    point(event) {
      if (!this.view) return;
      const left = this.plot.getBoundingClientRect().left + this.view.origin()[0];
      this.select(this.view.scale("x").invert(event.clientX - left));
    }

    key(event) {
      const places = [...new Set(shown(this.data).map((point) => place(this.data, point)))].sort((a, b) => a - b);
      const last = places.length - 1, here = this.at === Infinity ? last : places.findIndex((place) => place >= this.at);
      const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last }[event.key];
      if (next === undefined || last < 0) return;
      event.preventDefault();
      this.select(places[Math.max(0, Math.min(last, next))]);
    }

    // Read every line at x; at Infinity its end.
    select(x) {
      this.at = x;
      this.points = lines(this.data).map(([, points]) => x === Infinity ? points[points.length - 1] : nearest(this.data, points, x));
      this.points = this.points.map((point) => ({ ...point, moving: x !== Infinity }));
      this.readout.replaceChildren(...this.points.map((point) => this.row(point)));
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
      spec.title = `${this.data.title}: ${this.data.label} against ${axisLabel(this.data)}`;
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
    if (first === "held_out") return inside(evaluation.held_out, rest.join("."));
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
  let open = null; // the gallery and row that are enlarged

  class Gallery {
    constructor(block) {
      this.data = page.galleries[Number(block.dataset.gallery)];
      this.slider = block.querySelector("input[type=range]");
      this.where = block.querySelector(".where");
      this.button = block.querySelector(".play");
      this.rows = [...block.querySelectorAll(".row")];
      this.slider.value = this.slider.max;
      this.slider.addEventListener("input", () => { this.pause(); this.show(); });
      this.button.addEventListener("click", () => this.timer ? this.pause() : this.play());
      this.rows.forEach((figure, row) => {
        const image = figure.querySelector("img");
        figure.querySelector(".enlarge").addEventListener("click", () => enlarge(this, row));
        figure.querySelector("[data-save]").addEventListener("click", () => this.save(row));
        figure.querySelector("[data-save]").setAttribute("aria-label", `Download the pictures of ${this.data.rows[row].algorithm} as PNG`);
        image.addEventListener("pointermove", (event) => { figure.querySelector(".cell").textContent = this.cell(row, image, event); });
        image.addEventListener("pointerleave", () => { figure.querySelector(".cell").textContent = ""; });
      });
      this.show();
    }

    get queries() { return this.data.positions[Number(this.slider.value)]; }

    frame(row) {
      const until = this.data.rows[row].frames.filter((frame) => frame.queries <= this.queries);
      return until[until.length - 1] || this.data.rows[row].frames[0];
    }

    evaluation(row) { return results.runs[this.data.rows[row].run].evaluations[this.frame(row).evaluation]; }

    // A run that has not come as far as the slider shows its last pictures, and says so.
    state(row) {
      const { queries } = this.frame(row), reward = `mean reward ${number(mean(this.evaluation(row).rewards))}`;
      return queries === this.queries ? reward : `${reward}, at ${queries.toLocaleString("en")} queries`;
    }

    show() {
      const last = this.data.positions[this.data.positions.length - 1];
      this.where.textContent = `after ${this.queries.toLocaleString("en")} of ${last.toLocaleString("en")} reward queries`;
      this.slider.setAttribute("aria-valuetext", this.where.textContent);
      this.rows.forEach((figure, row) => {
        const image = figure.querySelector("img"), { algorithm } = this.data.rows[row], frame = this.frame(row);
        image.src = frame.picture;
        image.alt = `${frame.shown} pictures of ${algorithm} tuned for ${this.data.task}, ${this.where.textContent}, ${this.state(row)}`;
        figure.querySelector(".state").textContent = this.state(row);
      });
      if (open && open.gallery === this) showEnlarged();
    }

    cell(row, image, event) {
      const { size, gap, prompts } = this.data.rows[row], { columns } = this.data, box = image.getBoundingClientRect();
      // With object-fit: contain the picture may be smaller than its box.
      const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
      const x = (event.clientX - box.left - (box.width - image.naturalWidth * scale) / 2) / scale;
      const y = (event.clientY - box.top - (box.height - image.naturalHeight * scale) / 2) / scale;
      const column = Math.floor(x / (size[1] + gap)), index = Math.floor(y / (size[0] + gap)) * columns + column;
      if (column < 0 || column >= columns || !(index >= 0 && index < this.frame(row).shown)) return "";
      return `${prompts[index] ? prompts[index] + ": " : ""}reward ${number(this.evaluation(row).rewards[index])}`;
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

    save(row) {
      const image = this.rows[row].querySelector("img"), canvas = element("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      canvas.getContext("2d").drawImage(image, 0, 0);
      const file = `${this.data.name}-${this.data.rows[row].algorithm}-${this.frame(row).queries}.png`;
      canvas.toBlob((blob) => download(file, URL.createObjectURL(blob)), "image/png");
    }
  }

  const largeImage = enlarged.querySelector("img"), largeSlider = enlarged.querySelector("input");

  function enlarge(gallery, row) {
    open = { gallery, row };
    largeSlider.max = gallery.slider.max;
    enlarged.showModal();
    showEnlarged();
    largeSlider.focus();
  }

  function showEnlarged() {
    const { gallery, row } = open, image = gallery.rows[row].querySelector("img");
    largeImage.src = image.src;
    largeImage.alt = image.alt;
    const { size } = gallery.data.rows[row], columns = gallery.data.columns;
    largeImage.style.width = `${Math.max(1, Math.floor(1100 / (size[1] * columns))) * size[1] * columns}px`;
    largeSlider.value = gallery.slider.value;
    enlarged.querySelector(".title").textContent = `${gallery.data.rows[row].algorithm}, ${gallery.data.task}`;
    enlarged.querySelector(".where").textContent = `${gallery.where.textContent}, ${gallery.state(row)}`;
    enlarged.querySelector(".cell").textContent = "Point at a picture for its prompt and reward.";
  }

  largeSlider.addEventListener("input", () => {
    open.gallery.slider.value = largeSlider.value;
    open.gallery.pause();
    open.gallery.show();
  });
  for (const kind of ["pointermove", "pointerdown"]) {
    largeImage.addEventListener(kind, (event) => {
      enlarged.querySelector(".cell").textContent = open.gallery.cell(open.row, largeImage, event);
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
    const content = document.getElementById(button.dataset.download).textContent;
    button.addEventListener("click", () => download(button.dataset.name, text(content, "application/json")));
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
