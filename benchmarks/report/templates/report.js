"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const page = read("page-data"), results = read("results-data"), log = read("log-data");
  const names = Object.keys(page.styles);
  const hidden = new Set();
  let axis = 0; // index into page.axes, and into the x of every point of a chart without an axis of its own

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

  const tick = (value) => Math.abs(value) >= 1e5 ? d3.format("~s")(value) : value.toLocaleString("en");

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

  const shown = (chart) => chart.series.filter((series) => !hidden.has(series.name));

  const place = (chart, point) => point.x[chart.x_label ? 0 : axis];
  const axisLabel = (chart) => chart.x_label || page.axes[axis];

  function draw(chart, width, height, light, marginTop = 12) {
    const lines = shown(chart), marks = [], frontier = chart.section === "frontiers";
    for (const { name, points } of lines) {
      const x = (point) => place(chart, point), stroke = colour(name, light);
      // A band around a line that turns back hides more than it tells.
      if (!frontier && points.some((point) => point.low !== undefined)) {
        marks.push(Plot.areaY(points, { x, y1: "low", y2: "high", fill: stroke, fillOpacity: 0.18 }));
      }
      marks.push(Plot.lineY(points, { x, y: "y", stroke, strokeWidth: 2, strokeDasharray: page.styles[name].dash || null }));
      if (points.length <= 40) marks.push(Plot.dot(points, { x, y: "y", fill: stroke, r: 2 }));
      if (!frontier) continue;
      const end = points.slice(-1);
      marks.push(Plot.dot(end, { x, y: "y", fill: stroke, r: 5 }));
      if (end[0].x_low !== undefined) marks.push(Plot.ruleY(end, { x1: "x_low", x2: "x_high", y: "y", stroke }));
      if (end[0].low !== undefined) marks.push(Plot.ruleX(end, { x, y1: "low", y2: "high", stroke }));
    }
    const svg = Plot.plot({
      width, height, marginTop, marginLeft: 52, marginBottom: 40, marginRight: 16,
      x: { label: axisLabel(chart), ticks: Math.max(3, width / 110), tickFormat: tick, zero: !frontier },
      y: { label: null, grid: true, ticks: 5, zero: chart.zero },
      style: { fontSize: "12px", background: "transparent" },
      marks,
    });
    svg.setAttribute("role", "img");
    const ends = lines.map(({ name, points }) => `${name} ends at ${number(points[points.length - 1].y)}`);
    svg.setAttribute("aria-label", `${chart.task}: ${chart.label} against ${axisLabel(chart)}. ${ends.join(", ")}.`);
    return svg;
  }

  function nearest(chart, points, x) {
    let best = 0;
    points.forEach((point, i) => {
      if (Math.abs(place(chart, point) - x) < Math.abs(place(chart, points[best]) - x)) best = i;
    });
    return points[best];
  }

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.data = page.charts[Number(figure.dataset.chart)];
      this.plot = figure.querySelector(".plot");
      this.readout = figure.querySelector(".readout tbody");
      this.plot.tabIndex = 0;
      this.plot.addEventListener("pointermove", (event) => this.point(event));
      this.plot.addEventListener("pointerdown", (event) => this.point(event));
      this.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.select(Infinity); });
      this.plot.addEventListener("keydown", (event) => this.key(event));
      for (const button of figure.querySelectorAll("[data-save]")) {
        button.setAttribute("aria-label", `Download ${this.data.task}, ${this.data.label} as ${button.dataset.save.toUpperCase()}`);
        button.addEventListener("click", () => this.save(button.dataset.save));
      }
      new ResizeObserver(() => { if (this.plot.clientWidth !== this.width) this.render(); }).observe(this.plot);
    }

    render() {
      this.width = this.plot.clientWidth;
      this.svg = draw(this.data, this.width, Math.round(Math.max(220, Math.min(320, this.width * 0.6))), false);
      this.plot.replaceChildren(this.svg);
      this.cursor = document.createElementNS("http://www.w3.org/2000/svg", "g");
      this.svg.append(this.cursor);
      this.select(Infinity);
    }

    point(event) {
      const box = this.svg.getBoundingClientRect();
      this.select(this.svg.scale("x").invert((event.clientX - box.left) * this.width / box.width));
    }

    key(event) {
      const places = [...new Set(shown(this.data).flatMap(({ points }) => points.map((point) => place(this.data, point))))].sort((a, b) => a - b);
      const last = places.length - 1, here = this.at === Infinity ? last : places.findIndex((place) => place >= this.at);
      const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      this.select(places[Math.max(0, Math.min(last, next))]);
    }

    select(x) {
      this.at = x;
      this.readout.replaceChildren();
      this.cursor.replaceChildren();
      for (const { name, points } of shown(this.data)) {
        const point = x === Infinity ? points[points.length - 1] : nearest(this.data, points, x);
        this.mark(point, colour(name));
        this.describe(name, point);
      }
    }

    mark(point, fill) {
      const scale = (key, value) => this.svg.scale(key).apply(value);
      const add = (tag, attributes) => {
        const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
        this.cursor.append(made);
      };
      const cx = scale("x", place(this.data, point)), [low, high] = this.svg.scale("y").range;
      if (this.at !== Infinity) add("line", { x1: cx, x2: cx, y1: low, y2: high, stroke: "currentColor", "stroke-opacity": 0.25 });
      if (point.y !== null) add("circle", { cx, cy: scale("y", point.y), r: 4.5, fill, stroke: "var(--card)", "stroke-width": 1.5 });
    }

    describe(name, point) {
      const row = element("tr"), first = element("td"), value = element("td");
      first.append(swatch(name), name);
      value.append(traceable(number(point.y), point.source));
      const x = place(this.data, point), at = this.data.x_label ? number(x) : Math.round(x).toLocaleString("en");
      const across = point.x_low === undefined ? "" : `; ${this.data.x_label} ${number(point.x_low)} to ${number(point.x_high)}`;
      row.title = point.note ? point.note + across : "";
      row.append(first, element("td", `${at}:`, "x"), value);
      row.append(element("td", point.low === undefined ? "" : `${number(point.low)} to ${number(point.high)}`, "band"));
      this.readout.append(row);
    }

    save(kind) {
      const file = `${this.data.name}.${kind}`, svg = standalone(this.data);
      if (kind === "svg") return download(file, text(svg, "image/svg+xml"));
      const image = new Image();
      image.onload = () => {
        const canvas = element("canvas"), scale = 2;
        canvas.width = image.width * scale;
        canvas.height = image.height * scale;
        const context = canvas.getContext("2d");
        context.scale(scale, scale);
        context.drawImage(image, 0, 0);
        canvas.toBlob((blob) => download(file, URL.createObjectURL(blob)), "image/png");
      };
      image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg);
    }
  }

  function swatch(name) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    made.setAttribute("class", "swatch");
    made.setAttribute("viewBox", "0 0 24 8");
    made.setAttribute("aria-hidden", "true");
    const dash = page.styles[name].dash ? ' stroke-dasharray="6 3"' : "";
    made.innerHTML = `<line x1="0" y1="4" x2="24" y2="4" stroke="${colour(name)}" stroke-width="4"${dash}/>`;
    return made;
  }

  // The figure as a file: light whatever the page is, with its title and legend, and no style from outside.
  function standalone(chart) {
    const width = 720, height = 460, svg = draw(chart, width, height, true, 70);
    svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    svg.setAttribute("style", "color:#1c2024;font-family:system-ui,'DejaVu Sans',sans-serif;font-size:12px");
    const head = d3.select(svg);
    head.insert("rect", ":first-child").attr("width", width).attr("height", height).attr("fill", "#fff");
    head.append("text").attr("x", 16).attr("y", 24).attr("font-size", 15).attr("fill", "currentColor").text(`${chart.task}: ${chart.label}${chart.x_label ? ` against ${chart.x_label}` : ""}`);
    let left = 16;
    for (const { name } of shown(chart)) {
      head.append("line").attr("x1", left).attr("x2", left + 24).attr("y1", 44).attr("y2", 44).attr("stroke", colour(name, true))
        .attr("stroke-width", 3).attr("stroke-dasharray", page.styles[name].dash || null);
      head.append("text").attr("x", left + 30).attr("y", 48).attr("fill", "currentColor").text(name);
      left += 54 + 8 * name.length;
    }
    return new XMLSerializer().serializeToString(svg);
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
    select.value = "0";
    select.addEventListener("change", () => {
      axis = Number(select.value);
      charts.forEach((chart) => chart.render());
    });
  }

  // -- where a number comes from -------------------------------------------------------------------------------------

  const dialog = document.getElementById("source");

  function traceable(shownText, source) {
    const button = element("button", shownText, "number");
    button.type = "button";
    button.title = `${source.path} (${source.how})`;
    button.dataset.source = JSON.stringify(source);
    return button;
  }

  // A metric's own name may hold dots, so it is looked up whole.
  function inside(evaluation, field) {
    const [first, ...rest] = field.split(".");
    if (rest.length === 0 || evaluation[field] !== undefined) return evaluation[field];
    if (first === "held_out") return inside(evaluation.held_out, rest.join("."));
    return evaluation[first][rest.join(".")];
  }

  function places(source) {
    if (source.log !== undefined) return [["metrics.jsonl", log[source.log][source.field]]];
    return source.runs.map((run, index) => {
      const at = source.evaluations[index], found = inside(results.runs[run].evaluations[at], source.field);
      return [`runs[${run}].evaluations[${at}].${source.field} (${results.runs[run].folder || "run"})`, found];
    });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".number");
    if (!button) return;
    const source = JSON.parse(button.dataset.source), values = dialog.querySelector(".values");
    dialog.querySelector(".title").textContent = source.path;
    dialog.querySelector(".how").textContent = `${button.textContent}: ${source.how}.`;
    values.replaceChildren();
    for (const [name, value] of places(source)) {
      const many = Array.isArray(value) ? `, ${value.length} values, mean ${d3.mean(value)}` : "";
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
      const { queries } = this.frame(row), mean = `mean reward ${number(d3.mean(this.evaluation(row).rewards))}`;
      return queries === this.queries ? mean : `${mean}, at ${queries.toLocaleString("en")} queries`;
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
