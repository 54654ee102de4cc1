// Server-sent events by fetch: an EventSource cannot send a token.

const AGAIN = 2000;

/** One stream at a time: `open` until `close`, and again after an end that the page did not want. */
export class Stream {
  /** `handlers`: by the kind of a message. `show(state, problem)`: "live", or "lost" with the API's problem, if any. */
  constructor(url, token, handlers, show) {
    Object.assign(this, { url, token, handlers, show, current: null });
  }

  async open() {
    if (this.current) return;
    const current = (this.current = new AbortController());
    let problem = null;
    try {
      problem = await this.#read(current.signal);
    } catch {
      // The balancer does not answer, or has ended.
    }
    if (this.current !== current) return;
    this.current = null;
    this.show("lost", problem);
    setTimeout(() => document.hidden || this.open(), AGAIN);
  }

  close() {
    this.current?.abort();
    this.current = null;
  }

  /** Hands over messages until the stream ends. Returns the problem of a stream that is refused. */
  async #read(signal) {
    const token = this.token.get();
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch(this.url, { headers, signal, cache: "no-store" });
    if (response.status === 401) this.token.forget();
    if (!response.ok) return response.json();
    this.show("live");
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return null;
      const messages = (text + decoder.decode(value, { stream: true })).split("\n\n");
      text = messages.pop();
      for (const message of messages) this.#hand(message);
    }
  }

  #hand(message) {
    const [kind, data] = message.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
    try {
      this.handlers[kind]?.(JSON.parse(data));
    } catch (error) {
      reportError(error); // A fault of the page is not one of the connection.
    }
  }
}
