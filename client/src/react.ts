// React hooks.

export {};
