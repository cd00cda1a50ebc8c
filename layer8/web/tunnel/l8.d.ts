// Types of l8.js, layer8's module for browsers. See docs/tunnel-js.md and docs/tunnel-pages.md.

/** How a page reaches a gateway. */
export interface ConnectOptions {
  /** The address of a relay, or of several: one is picked, the others compare the gateway's keys. */
  relay: string | string[];
  /** The gateway's id at the relay. */
  gateway: string;
  /** The host that relative URLs are of; the first of the gateway's if left out. */
  authority?: string;
  /** The gateway's identity key, 43 letters; two while it changes. */
  pin: string | string[];
  /** Whether cookies are kept, and where; false if left out. */
  session?: false | "memory" | "persistent";
  /** Whether lengths are hidden; true if left out. */
  pad?: boolean;
  /** Asks for compressed answers, whose size tells more about what is inside. */
  compress?: "gzip";
  /** What to do without a relay: nothing, or ask the backend directly, which shows it the visitor's address. */
  fallback?: "never" | "direct";
  /** Milliseconds without a sign of life. */
  timeout?: number;
}

/** What `fetch` takes, and more. */
export interface L8Init extends RequestInit {
  /** Called as the body is sealed, with bytes. */
  onprogress?(sent: number, total: number): void;
  /** False: the promise waits for the whole body. */
  stream?: boolean;
}

export type State = "idle" | "keys" | "ready" | "refreshing" | "failed" | "closed";

/** A tunnel to one gateway; fires `statechange`. */
export interface Tunnel extends EventTarget {
  readonly state: State;
  readonly gateway: string;
  /** The epoch of the keys, the hour since 1970 in which they were made; null before they are there. */
  readonly epoch: number | null;
  fetch(input: RequestInfo | URL, init?: L8Init): Promise<Response>;
  close(): Promise<void>;
  /** Throws the cookies away. */
  clearSession(): Promise<void>;
}

export type Leg = "page" | "relay" | "gateway" | "backend";

/** Why something failed: `code` says what, `leg` where, `hint` what to do. */
export declare class L8Error extends Error {
  private constructor();
  readonly code: string;
  readonly leg: Leg;
  readonly retryable: boolean;
  readonly hint: string;
}

/** What one tunnel is doing. */
export interface TunnelStatus {
  gateway: string;
  state: State;
  /** The code of what has failed. */
  error: string | null;
  epoch: number | null;
  authorities: string[];
  /** When the keys expire. */
  expires: string | null;
  relay: string;
  relays: string[];
  session: false | "memory" | "persistent";
  fallback: "never" | "direct";
  requests: number;
  failures: number;
  resends: number;
  /** Sealed bytes. */
  up: number;
  down: number;
  /** Requests that went around the relay. */
  direct: number;
}

export interface Status {
  version: string;
  debug: boolean;
  tunnels: TunnelStatus[];
}

/** Milliseconds: the middle, and what 99 of 100 are not above. */
export interface Spread {
  median: number;
  p99: number;
}

/** What requests take, in all and split by leg. */
export interface Timing extends Record<Leg | "total", Spread> {
  n: number;
}

/** What a service worker has kept of a file or manifest that was not what it should be. */
export interface Evidence {
  time: string;
  url: string;
  why: string;
  /** Hashes, base64url of SHA-256. */
  expected: string;
  got: string;
  /** The manifest that counts, and the one that was refused. */
  manifests: [string | null, string | null];
}

export interface ServiceWorkerOptions {
  /** What it serves; "/" if left out. */
  scope?: string;
  /** What goes through the tunnel of this origin, by how its path begins; if left out, what the app's manifest does not list. */
  paths?: string | string[];
  /** The key that signs the app's manifest, 43 letters; if left out, whose first manifest is seen. */
  publisher?: string;
}

export interface L8 {
  readonly version: string;
  connect(options: ConnectOptions): Promise<Tunnel>;
  /** The same as `connect`. */
  registerCitizenship(options: ConnectOptions): Promise<Tunnel>;
  fetch(input: RequestInfo | URL, init?: L8Init): Promise<Response>;
  /** Gives a blob: URL of what is there; `URL.revokeObjectURL` lets go of it. */
  static(url: string | URL): Promise<string>;
  readonly WebSocket: typeof WebSocket;
  readonly EventSource: typeof EventSource;
  status(): Promise<Status>;
  /** Times requests to the first tunnel. */
  measure(n?: number): Promise<Timing>;

  /** Lets the page's `fetch` go through the tunnel for these origins; gives what takes that back. */
  install(options: { origins: string[] }): Promise<() => void>;
  serviceWorker(options?: ServiceWorkerOptions): Promise<ServiceWorkerRegistration>;
  evidence(): Promise<Evidence[]>;
  debug(on: boolean): Promise<void>;
}

export declare const L8: L8;
export default L8;

declare global {
  /** Set once l8.js has run. */
  // eslint-disable-next-line no-var
  var L8: L8;
}
