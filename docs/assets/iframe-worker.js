// The search of this site runs in a worker, which browsers refuse to pages that are opened from a folder. There
// a hidden frame takes the worker's place. Material for MkDocs expects the name IFrameWorker, and loads a script
// with this job from another server unless it finds one.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.document.write("<!doctype html><body>"); // else Firefox replaces the document a moment later
      inside.document.close();
      const load = (path) =>
        new Promise((resolve, reject) => {
          const script = inside.document.createElement("script");
          script.onload = resolve;
          script.onerror = reject;
          script.src = path;
          inside.document.body.append(script);
        });
      inside.importScripts = (...paths) =>
        paths.reduce((before, path) => before.then(() => load(path)), Promise.resolve());
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const loaded = load(url);
      this.postMessage = (data) =>
        loaded.then(() => inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
