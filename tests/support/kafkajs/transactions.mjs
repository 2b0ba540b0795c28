// Publishes through kafkajs: a committed transaction, an aborted one, then idempotently.
import {Kafka} from 'kafkajs';

const kafka = new Kafka({brokers: [process.argv[2]], logLevel: 1});
const record = (value) => ({topic: 't', messages: [{value, partition: 0}]});

const producer = kafka.producer({transactionalId: 'js', idempotent: true, maxInFlightRequests: 1});
await producer.connect();
for (const [value, ends] of [['1', 'commit'], ['aborted', 'abort'], ['2', 'commit']]) {
  const transaction = await producer.transaction();
  await transaction.send(record(value));
  await transaction[ends]();
}
await producer.disconnect();

const idempotent = kafka.producer({idempotent: true, maxInFlightRequests: 1});
await idempotent.connect();
await idempotent.send(record('3'));
await idempotent.disconnect();
