// The connections of one user on all nodes, with what an operator can do about them.
import {$, call, duration, element, setText} from './dom.js';
import {TRANSPORTS} from './clients.js';

const CODES = {Drain: 1001, Disconnect: 4003};
const TITLES = Object.fromEntries(Object.values(TRANSPORTS).map(({name, title}) => [name, title]));

export class Connections {
  // `acted` is called after each action.
  constructor(acted) {
    this.acted = acted;
    this.rows = new Map(); // by connection id
    $('whose').onsubmit = (event) => { event.preventDefault(); acted(); };
    $('who').onchange = acted;
    $('drain-all').onclick = () => this.end('Drain', {}, `all connections of ${$('who').value}`);
    $('disconnect-all').onclick = () => {
      this.end('Disconnect', {}, `all connections of ${$('who').value}`);
    };
  }

  show(found, problem) {
    if (problem || !found) {
      setText($('registry'), problem ? `The registry is not reachable: ${problem}` : '');
      return;
    }
    const {nodes, listings, errors} = found;
    const where = nodes.length ? `at ${nodes.join(', ')}` : 'nowhere: offline';
    setText($('registry'), [`The registry has ${$('who').value} ${where}.`, ...errors].join(' '));
    const listed = listings.flatMap(({node, connections}) =>
      connections.map((connection) => ({...connection, node})));
    const rows = new Map();
    for (const connection of listed) {
      const row = this.rows.get(connection.id) || this.row(connection);
      this.fill(row, connection);
      rows.set(connection.id, row);
    }
    for (const [id, row] of this.rows) if (!rows.has(id)) row.remove();
    for (const [id, row] of rows) if (!this.rows.has(id)) $('connections').append(row);
    this.rows = rows;
    $('drain-all').disabled = $('disconnect-all').disabled = !listed.length;
  }

  row({id, transport, device}) {
    const name = `${TITLES[transport] || transport} ${device || 'without a device'}`;
    const row = element('li');
    row.dataset.transport = transport;
    row.append(element('b', '', TITLES[transport] || transport), element('span', 'device', device || 'no device'));
    const actions = element('span', 'actions');
    row.append(element('span', 'facts'), actions);
    actions.append(...Object.keys(CODES).map((action) => {
      const button = element('button', action.toLowerCase(), action);
      button.type = 'button';
      button.setAttribute('aria-label', `${action} ${name}`);
      button.onclick = () => this.end(action, {id}, name);
      return button;
    }));
    return row;
  }

  fill(row, {state, age_ms: age, node}) {
    row.dataset.state = state;
    setText(row.querySelector('.facts'), `${state}, ${duration(age)}, ${node}`);
  }

  async end(action, selection, what) {
    const query = new URLSearchParams({user: $('who').value, code: CODES[action], ...selection});
    try {
      const {closed, errors} = await call('DELETE', `/demo/connections?${query}`);
      const done = action === 'Drain' ? 'told to reconnect (1001)' : 'closed (4003)';
      setText($('acted'), [`${what}: ${closed} ${done}.`, ...errors].join(' '));
    } catch (error) {
      setText($('acted'), `${action} failed: ${error.message}`);
    }
    this.acted();
  }
}
