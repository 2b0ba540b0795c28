import {StrictMode} from 'react';
import {createRoot} from 'react-dom/client';

import {PushClient} from 'pushgate-client';
import {useMessages} from 'pushgate-client/react';

const gateway = import.meta.env.VITE_PUSHGATE_URL ?? 'http://localhost:8080';
// A page of yours asks its own backend for the token of its user. Here: ?token=, from
// `pushgate token USER`.
const token = new URLSearchParams(location.search).get('token') ?? '';

// One client for the page: components come and go, the connection stays.
const client = new PushClient(gateway, {token});

function Messages() {
  const {messages, state, gaps} = useMessages(client, {limit: 20});
  return (
    <>
      <p>
        Connection: <b id="state">{state}</b>
        {gaps > 0 && ', but something was missed: fetch it afresh'}
      </p>
      <ul id="messages">
        {messages.map(({id, type, data}) => (
          <li key={id}>{type ? `${type}: ${data}` : String(data)}</li>
        ))}
      </ul>
    </>
  );
}

createRoot(document.querySelector('#root')!).render(
  <StrictMode>
    <Messages />
  </StrictMode>,
);
