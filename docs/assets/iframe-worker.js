// The theme searches in a web worker, which browsers refuse to pages that are opened from the disk. There a frame stands
// in for the worker: a page of its own that runs the same script, with which the page exchanges the same messages.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((resolve) => {
        window.addEventListener("message", (event) => {
          if (event.source !== frame.contentWindow) return;
          if (event.data === "iframe-worker is ready") resolve(frame.contentWindow);
          else this.dispatchEvent(Object.assign(new Event("message"), { data: event.data }));
        });
      });
      // In a worker postMessage goes to the page that made it; so it does here.
      frame.srcdoc = `<script>
        window.postMessage = (data) => parent.postMessage(data, "*");
        window.importScripts = () => {};
      </script>
      <script src="${new URL(address, location.href)}"></script>
      <script>parent.postMessage("iframe-worker is ready", "*")</script>`;
      document.body.append(frame);
    }

    postMessage(data) {
      this.ready.then((worker) => worker.dispatchEvent(Object.assign(new Event("message"), { data })));
    }
  };
}
