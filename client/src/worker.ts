// The worker that keeps one connection for all tabs of an origin.

export {};
