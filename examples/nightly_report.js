// Sums up a device's day: as a schedule every night, where the device is; as a job for any days.
//
//   cloudcode deploy examples/nightly_report.js --retries '{"max_attempts": 5}'
//   cloudcode schedule create nightly_report --cron '0 0 * * *' --product weather --name nightly
//   cloudcode schedule preview nightly
//   cloudcode schedule trigger nightly --device dev_...       # now, for one device
//   cloudcode jobs create nightly_report '{"device": "dev_...", "from": "2010-01-01", "days": 31}'
//   cloudcode kv list --prefix report:
//
// A run goes by the time it is for, never by the time it is: so it says the same when it is late,
// tried again, or asked for twice. What it stores is kept only if it succeeds.

const KEY = "temp";
const DAY_MS = 24 * 60 * 60 * 1000;
const READINGS_MAX = 1000; // of one day

export default {
  // For each device of the schedule's product: the 24 hours before midnight of its own time zone.
  async scheduled(event, env) {
    const report = await sumUp(env, event.deviceId, event.scheduledTime - DAY_MS);
    if (report) await env.KV.put(`report:${event.deviceId}:last`, report);
  },

  // {device, from: "2010-01-01", days}: days of UTC, one after the other.
  async job({ device, from, days = 1 }, env, ctx) {
    let found = 0;
    for (let day = 0; day < days; day++) {
      const start = Date.parse(`${from}T00:00:00Z`) + day * DAY_MS;
      const report = await sumUp(env, device, start);
      if (report) {
        found++;
        await env.KV.put(`report:${device}:${report.start.slice(0, 10)}`, report);
      }
      await ctx.progress((day + 1) / days, `${day + 1} of ${days} days`);
    }
    return { device, days, found };
  },
};

async function sumUp(env, device, startMs) {
  const readings = await env.DEVICES.values(device, KEY, {
    start: new Date(startMs).toISOString(),
    end: new Date(startMs + DAY_MS - 1).toISOString(),
    limit: READINGS_MAX,
  });
  const start = new Date(startMs).toISOString();
  if (readings.length === 0) {
    console.log(`${device}: no readings in the day from ${start}`);
    return null;
  }
  const values = readings.map((reading) => reading.value);
  const sum = values.reduce((total, value) => total + value, 0);
  return {
    start,
    readings: values.length,
    lowest: Math.min(...values),
    mean: Math.round((sum / values.length) * 100) / 100,
    highest: Math.max(...values),
  };
}
