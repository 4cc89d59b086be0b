// Looks at every picture that a lane presents, as soon as the page can read it. Needs barcode.js.
(() => {
  const BARCODE_AT = { x: 16, y: 16 };
  /** Middle of the responder's window, which changes its colour at every click. */
  const TARGET = { x: 432, y: 48 };
  const STRIP = { width: TARGET.x + 8 - BARCODE_AT.x, height: TARGET.y + 8 - BARCODE_AT.y };
  const CLICK_LIMIT_MS = 2_000;
  /** Nothing real is this old: a wrong reading that passed the checksum. */
  const AGE_MAX_MS = 10_000;

  const now = () => performance.timeOrigin + performance.now();
  const round = (ms) => Math.round(ms * 100) / 100;

  class Meter {
    #context = new OffscreenCanvas(STRIP.width, STRIP.height).getContext("2d", { willReadFrequently: true });
    #lastTime = null;
    #targetWhite = null;
    #pending = null;
    #window = null;
    /** When the first picture could be read. */
    firstAt = null;

    constructor() {
      // The page learns of the click here, before the viewer does.
      addEventListener("pointerdown", () => this.#clicked(now()), { capture: true });
    }

    /** A picture of the desktop, that can be drawn, is on the page. */
    picture(source) {
      const at = now();
      this.firstAt ??= at;
      this.#context.drawImage(source, BARCODE_AT.x, BARCODE_AT.y, STRIP.width, STRIP.height, 0, 0, STRIP.width, STRIP.height);
      const { data } = this.#context.getImageData(0, 0, STRIP.width, STRIP.height);
      const isWhite = (x, y) => barcode.isWhite(data[(y * STRIP.width + x) * 4]);
      this.#heedTarget(at, isWhite(TARGET.x - BARCODE_AT.x, TARGET.y - BARCODE_AT.y));
      const time = barcode.read((x) => isWhite(x, barcode.height / 2));
      const seen = this.#window;
      if (!seen) {
        this.#lastTime = time ?? this.#lastTime;
        return;
      }
      if (seen.lastAt !== null) seen.gaps.push(round(at - seen.lastAt));
      seen.lastAt = at;
      seen.pictures += 1;
      if (time === null) {
        seen.bad += 1;
      } else if (time !== this.#lastTime) {
        this.#lastTime = time;
        const age = barcode.age(time, at);
        if (age < 0 || age > AGE_MAX_MS) seen.bad += 1;
        else seen.ages.push(round(age));
      }
    }

    #heedTarget(at, white) {
      const changed = this.#targetWhite !== null && this.#targetWhite !== white;
      this.#targetWhite = white;
      if (!changed || !this.#pending) return;
      this.#window?.clicks.push(round(at - this.#pending));
      this.#pending = null;
    }

    #clicked(at) {
      if (this.waits) return;
      if (this.#pending && this.#window) this.#window.missed += 1;
      this.#pending = at;
    }

    /** Whether a click may still show in a picture. */
    get waits() {
      return this.#pending !== null && now() - this.#pending < CLICK_LIMIT_MS;
    }

    /** Whether the barcode has been read. */
    get reads() {
      return this.#lastTime !== null;
    }

    start() {
      this.#window = { from: now(), ages: [], clicks: [], missed: 0, bad: 0, pictures: 0, gaps: [], lastAt: null };
      this.#pending = null;
    }

    stop() {
      const { from, lastAt, ...seen } = this.#window;
      this.#window = null;
      const at = now();
      // A picture that never came is a gap, too.
      seen.gaps.push(round(at - (lastAt ?? from)));
      return { seconds: (at - from) / 1000, ...seen };
    }
  }

  globalThis.Meter = Meter;

  globalThis.TARGET = TARGET;

  /** Looks at a video's frames while it is the one that is shown. */
  globalThis.watchVideo = (video, meter, isShown) => {
    const look = () => {
      if (isShown()) meter.picture(video);
      video.requestVideoFrameCallback(look);
    };
    video.requestVideoFrameCallback(look);
  };

  /** Looks at a canvas, in the first animation frame after each time it was drawn on; gives what to call then. */
  globalThis.watchCanvas = (canvas, meter) => {
    let drawn = false;
    const look = () => {
      drawn = false;
      meter.picture(canvas());
    };
    return () => {
      if (!drawn) requestAnimationFrame(look);
      drawn = true;
    };
  };
})();
