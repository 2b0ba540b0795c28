// The last minute, drawn: messages that arrived a second, and the median time from Send to here.
import {$, median, setText} from './dom.js';

const SECONDS = 60;
const DRAW_MS = matchMedia('(prefers-reduced-motion: reduce)').matches ? 1000 : 250;
const PAD = {left: 34, right: 52, top: 10, bottom: 18};

export class Chart {
  constructor() {
    this.canvas = $('chart');
    this.seconds = new Map(); // second → {count, latencies}
    this.saidAt = null; // the second of the last text
    setInterval(() => this.draw(), DRAW_MS);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  // Note a message that has arrived; `took` is null where it was not sent from here.
  arrived(took) {
    const second = now();
    const noted = this.seconds.get(second) || {count: 0, latencies: []};
    noted.count += 1;
    if (took !== null && noted.latencies.length < 1000) noted.latencies.push(took);
    this.seconds.set(second, noted);
  }

  draw() {
    const last = now();
    for (const second of this.seconds.keys()) {
      if (second <= last - SECONDS) this.seconds.delete(second);
    }
    this.say(last);
    const {clientWidth: width, clientHeight: height} = this.canvas;
    if (!width || document.hidden) return;
    const scale = devicePixelRatio || 1;
    if (this.canvas.width !== width * scale || this.canvas.height !== height * scale) {
      this.canvas.width = width * scale;
      this.canvas.height = height * scale;
    }
    const pen = this.canvas.getContext('2d');
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    this.paint(pen, {width, height, last});
  }

  paint(pen, {width, height, last}) {
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const plot = {
      left: PAD.left, right: width - PAD.right, top: PAD.top, bottom: height - PAD.bottom,
    };
    const medians = [...this.seconds].filter(([, {latencies}]) => latencies.length)
      .map(([second, {latencies}]) => [second, median(latencies)]);
    const mostCount = niceTop(Math.max(1, ...[...this.seconds.values()].map(({count}) => count)));
    const mostMs = niceTop(Math.max(1, ...medians.map(([, ms]) => ms)));
    const x = (second) => plot.right - ((last - second) / SECONDS) * (plot.right - plot.left);
    const y = (share) => plot.bottom - share * (plot.bottom - plot.top);
    this.axes(pen, plot, {mostCount, mostMs, y, colour});
    pen.fillStyle = colour('--bars');
    const barWidth = Math.max(1, (plot.right - plot.left) / SECONDS - 1.5);
    for (const [second, {count}] of this.seconds) {
      const top = y(count / mostCount);
      pen.fillRect(x(second) - barWidth, top, barWidth, plot.bottom - top);
    }
    pen.strokeStyle = pen.fillStyle = colour('--dots');
    pen.lineWidth = 1.5;
    pen.beginPath();
    medians.forEach(([second, ms]) => pen.lineTo(x(second) - barWidth / 2, y(ms / mostMs)));
    pen.stroke();
    for (const [second, ms] of medians) {
      pen.beginPath();
      pen.arc(x(second) - barWidth / 2, y(ms / mostMs), 2.5, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  axes(pen, plot, {mostCount, mostMs, y, colour}) {
    pen.strokeStyle = colour('--line');
    pen.lineWidth = 1;
    pen.font = '11px system-ui, sans-serif';
    pen.textBaseline = 'middle';
    for (const share of [0, 0.5, 1]) {
      const level = Math.round(y(share)) + 0.5;
      pen.beginPath();
      pen.moveTo(plot.left, level);
      pen.lineTo(plot.right, level);
      pen.stroke();
      pen.fillStyle = colour('--bars-text');
      pen.textAlign = 'right';
      if (share === 1 || mostCount >= 2) pen.fillText(shortNumber(share * mostCount), plot.left - 6, level);
      pen.fillStyle = colour('--dots-text');
      pen.textAlign = 'left';
      if (share) pen.fillText(`${shortNumber(share * mostMs)} ms`, plot.right + 5, level);
    }
    pen.fillStyle = colour('--soft');
    pen.textAlign = 'left';
    pen.fillText('60 s ago', plot.left, plot.bottom + 11);
    pen.textAlign = 'right';
    pen.fillText('now', plot.right, plot.bottom + 11);
  }

  say(second) {
    if (second === this.saidAt) return; // a reader's screen reader is not to hear each frame
    this.saidAt = second;
    const noted = [...this.seconds.values()];
    const total = noted.reduce((sum, {count}) => sum + count, 0);
    const latencies = noted.flatMap((each) => each.latencies).sort((a, b) => a - b);
    const most = Math.max(0, ...noted.map(({count}) => count));
    let text = `${total} message${total === 1 ? '' : 's'} arrived, ${most} in the busiest second`;
    if (latencies.length) {
      const nearlyAll = latencies[Math.floor(latencies.length * 0.99)];
      text += `; median ${median(latencies).toFixed(0)} ms, 99 % within ${nearlyAll.toFixed(0)} ms`;
    }
    setText($('live-text'), `${text}.`);
  }
}

const now = () => Math.floor(performance.now() / 1000);

// The least of 1, 2, 5, 10, 20, 50, … that is not below `value`.
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value);
}

function shortNumber(value) {
  return value >= 1000 ? `${value / 1000}k` : String(Math.round(value * 10) / 10);
}
