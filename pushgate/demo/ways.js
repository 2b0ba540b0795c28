// The ways of messages: from Kafka to their outcomes, as the outcomes topic tells.
import {$, clockTime, element, median, putFirst, setText} from './dom.js';

const KEPT_WAYS = 60;
const MOST_OTHERS = 20; // messages of other publishers that one answer may add
const MEANING = {
  offline: 'the user, or the device asked for, had no connection',
  expired: 'older than its TTL when its turn came',
  replaced: 'a newer message had the same collapse key',
  rejected: 'breaks a rule of publishing; kept in the dead-letter topic',
  failed: 'it did not arrive for certain; the user may be connected',
};

// Several copies that were sent together are one way.
class Way {
  constructor(user, ids) {
    this.user = user;
    this.ids = ids;
    this.coordinates = [];
    this.counts = {}; // by outcome
    this.report = null; // the newest
    this.ms = [];
    this.problem = null;
    this.item = element('li');
    this.time = clockTime();
    this.show();
  }

  take(report) {
    const name = report.replayed ? 'replayed' : report.outcome;
    this.counts[name] = (this.counts[name] || 0) + 1;
    if (report.ms !== null && report.ms !== undefined) this.ms.push(report.ms);
    this.report = report;
  }

  get isSettled() {
    const {replayed = 0, ...outcomes} = this.counts;
    const told = Object.values(outcomes).reduce((sum, count) => sum + count, 0);
    return this.problem !== null || told >= this.ids.length;
  }

  show() {
    const head = element('p', 'head');
    for (const [name, count] of Object.entries(this.counts)) {
      head.append(element('b', `chip ${name}`, count > 1 ? `${name} ${count}` : name));
    }
    if (this.problem !== null) head.append(element('b', 'chip failed', 'not sent'));
    else if (!this.isSettled) head.append(element('b', 'chip', 'waiting'));
    const what = this.ids.length > 1 ? `${this.ids.length} messages` : this.ids[0];
    head.append(element('span', 'to', `to ${this.user}`), element('span', 'id', what));
    head.append(element('time', '', this.time));
    this.item.replaceChildren(head, this.steps(), ...this.reasons());
  }

  steps() {
    const steps = element('ol', 'steps');
    const last = this.coordinates[this.coordinates.length - 1];
    if (last) steps.append(element('li', '', `Kafka ${last}`));
    if (!this.report) return steps;
    const {processor, nodes = [], connections} = this.report;
    if (processor) steps.append(element('li', '', `processor ${processor}`));
    if (nodes.length) steps.append(element('li', '', `node ${nodes.join(', ')}`));
    if (connections) {
      steps.append(element('li', '', `${connections} connection${connections > 1 ? 's' : ''}`));
    }
    if (this.ms.length) {
      const several = this.ms.length > 1 ? 'median ' : '';
      steps.append(element('li', 'ms', `${several}${median(this.ms)} ms`));
    }
    return steps;
  }

  reasons() {
    if (this.problem !== null) return [element('p', 'reason', this.problem)];
    if (!this.report) return [];
    const {outcome, reason, missed} = this.report;
    const parts = [reason, MEANING[outcome]].filter(Boolean);
    if (missed) parts.push(`${missed} more node${missed > 1 ? 's' : ''} may be without it`);
    return parts.length ? [element('p', 'reason', parts.join(': '))] : [];
  }
}

export class Ways {
  constructor() {
    this.byName = new Map(); // by id, and by coordinates: a rejected record's id is not told
    this.recent = [];
  }

  get anyWaiting() {
    return this.recent.some((way) => !way.isSettled);
  }

  sending(user, ids) {
    const way = new Way(user, ids);
    this.put(way, ids);
    return way;
  }

  published(way, coordinates) {
    way.coordinates = coordinates;
    coordinates.forEach((place) => this.byName.set(place, way));
    way.show();
  }

  unsent(way, problem) {
    way.problem = problem;
    way.show();
  }

  // Take the reports since the last answer; `forgotten` were too many to keep.
  take(reports, forgotten) {
    const others = reports.filter(({report}) => !this.of(report));
    const shownOthers = new Set(others.slice(-MOST_OTHERS));
    const changed = new Set();
    for (const told of reports) {
      const way = this.of(told.report) || (shownOthers.has(told) && this.other(told));
      if (!way) continue;
      way.take(told.report);
      changed.add(way);
    }
    changed.forEach((way) => way.show());
    const hidden = others.length - shownOthers.size + forgotten;
    if (hidden) setText($('ways-note'), `${hidden} more messages of other publishers are not shown.`);
  }

  of(report) {
    return this.byName.get(placeOf(report)) || this.byName.get(report.id);
  }

  other({user, report}) {
    const way = new Way(user, [report.id]);
    way.coordinates = [placeOf(report)];
    this.put(way, way.coordinates);
    return way;
  }

  put(way, names) {
    names.forEach((name) => this.byName.set(name, way));
    putFirst($('ways'), way.item, KEPT_WAYS);
    setText($('ways-note'), '');
    this.recent.push(way);
    if (this.recent.length <= KEPT_WAYS) return;
    const oldest = this.recent.shift();
    for (const name of [...oldest.ids, ...oldest.coordinates]) {
      if (this.byName.get(name) === oldest) this.byName.delete(name);
    }
  }
}

const placeOf = ({topic, partition, offset}) => `${topic}-${partition}-${offset}`;
