// Prints a user's messages: PUSHGATE_TOKEN=$(pushgate token USER) node listen.js

import {PushClient} from 'pushgate-client';

const {PUSHGATE_URL = 'http://localhost:8080', PUSHGATE_TOKEN} = process.env;
const client = new PushClient(PUSHGATE_URL, {token: PUSHGATE_TOKEN});

client.addEventListener('open', () => console.error(`connected by ${client.transport}`));
client.addEventListener('gap', () => console.error('something was missed'));
client.addEventListener('error', ({reason, retryIn}) => {
  console.error(retryIn === null ? `given up: ${reason}` : `again in ${retryIn} ms: ${reason}`);
});
process.once('SIGINT', () => client.close());

for await (const {id, type, data} of client) {
  console.log(JSON.stringify({id, type, data: String(data)}));
}
