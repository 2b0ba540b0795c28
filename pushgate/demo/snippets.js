// The message of the form as lines for a terminal, a program or a page.
import {$, call, element, setText} from './dom.js';
import {record} from './sending.js';

const quoted = (text) => `'${text.replace(/'/g, "'\\''")}'`; // for a POSIX shell
const isPlain = (text) => /^[\w@%+=:,./-]+$/.test(text);
const word = (text) => (isPlain(text) ? text : quoted(text));
const literal = (text) => JSON.stringify(text);

const LANGUAGES = {
  kcat({kafka, topic}) {
    const {user, payload, headers} = withId();
    const fields = Object.entries(headers).map(([name, value]) => ` -H ${word(`${name}=${value}`)}`);
    const to = `kcat -P -b ${kafka} -X partitioner=murmur2_random -t ${topic} -k ${word(user)}${fields.join('')}`;
    // A line is a message; a file is one message, whatever lines it has.
    return payload.includes('\n')
      ? `printf %s ${quoted(payload)} |\n  ${to} /dev/stdin`
      : `echo ${quoted(payload)} |\n  ${to}`;
  },
  pushgate() {
    const {user, payload, headers} = withId();
    const options = Object.entries(headers)
      .map(([name, value]) => ` --${name.slice('push-'.length)} ${word(value)}`);
    return `pushgate send ${word(user)} ${quoted(payload)}${options.join('')}\npushgate listen ${word(user)}`;
  },
  Python({kafka, topic}) {
    const {user, payload, headers} = withId();
    const fields = Object.entries(headers)
      .map(([name, value]) => `${literal(name)}: ${literal(value)}`).join(', ');
    return [
      'from confluent_kafka import Producer',
      '',
      `producer = Producer({"bootstrap.servers": ${literal(kafka)},`,
      '                     "partitioner": "murmur2_random"})',
      `producer.produce(${literal(topic)}, key=${literal(user)},`,
      `                 value=${literal(payload)}${fields && `,\n                 headers={${fields}}`})`,
      'producer.flush()',
    ].join('\n');
  },
  Browser() {
    return [
      `<script src="${location.origin}/pushgate.js"></script>`,
      '<script>',
      `  const connection = pushgate.connect({token: ${literal(minted || '…')}});`,
      '  connection.onmessage = ({id, type, data}) =>',
      '    console.log(id, type, data);',
      '</script>',
    ].join('\n');
  },
  Token() {
    return minted || `pushgate token ${word(record().user)}`;
  },
};

let minted = '';

export class Snippets {
  constructor(about) {
    this.about = about;
    for (const name of Object.keys(LANGUAGES)) $('languages').append(this.choice(name));
    $('send').addEventListener('input', () => this.show());
    $('to').addEventListener('input', () => { minted = ''; });
    $('copy').onclick = () => this.copy();
    $('mint').onclick = () => this.mint();
    this.show();
  }

  choice(name) {
    const label = element('label');
    const radio = element('input');
    Object.assign(radio, {type: 'radio', name: 'language', value: name, checked: name === 'kcat'});
    radio.onchange = () => this.show();
    label.append(radio, element('span', '', name));
    return label;
  }

  get language() {
    return document.querySelector('[name=language]:checked').value;
  }

  show() {
    setText($('snippet'), LANGUAGES[this.language](this.about));
    setText($('copied'), '');
    $('mint').hidden = !['Token', 'Browser'].includes(this.language);
  }

  async mint() {
    try {
      minted = (await call('POST', '/demo/token', {body: {user: record().user}})).token;
      this.show();
      setText($('copied'), 'good for an hour');
    } catch (error) {
      setText($('copied'), error.message);
    }
  }

  async copy() {
    try {
      await navigator.clipboard.writeText($('snippet').textContent);
      setText($('copied'), 'copied');
    } catch {
      getSelection().selectAllChildren($('snippet')); // without the permission the reader copies it
      setText($('copied'), 'marked: copy it');
    }
  }
}

function withId() {
  const {id, headers, ...rest} = record();
  return {...rest, headers: id ? {...headers, 'push-id': id} : headers};
}
