// Sends a message to Slack at the first reading of a day that is too hot, and at the first that is
// too cold: one alarm of each kind a day, however many readings follow.
//
// "First" is decided by what is stored, never by what this run remembers: runs of different writes
// may overlap, and all readings of a write are stored before its run begins. Effects are kept only
// if the run succeeds, so a run that is tried again does not send twice.

interface Reading {
  key: string;
  value: number;
  datetime: string; // ISO 8601, UTC
}

interface DeviceEvent {
  id: string;
  deviceId: string;
  deviceType: string;
  data: { values: Reading[] };
}

interface Window {
  start: string;
  end: string;
  limit: number;
}

interface Env {
  DEVICES: { values(deviceId: string, key: string, window: Window): Promise<Reading[]> };
  ALERTS: { send(message: { text: string }): Promise<unknown> };
  HEAT_AT?: string; // degrees Fahrenheit; `cloudcode deploy --var HEAT_AT=75`
  FROST_AT?: string;
}

interface Ctx {
  executionId: string;
}

interface Alarm {
  name: string;
  raisedBy(value: number): boolean;
}

const KEY = "temp";
const READINGS_MAX = 1000; // of one day

export default {
  async afterStore(event: DeviceEvent, env: Env, ctx: Ctx): Promise<void> {
    const heatAt = Number(env.HEAT_AT ?? 80);
    const frostAt = Number(env.FROST_AT ?? 32);
    const alarms: Alarm[] = [
      { name: "heat", raisedBy: (value) => value >= heatAt },
      { name: "frost", raisedBy: (value) => value <= frostAt },
    ];

    for (const reading of event.data.values.filter((value) => value.key === KEY)) {
      const raised = alarms.filter((alarm) => alarm.raisedBy(reading.value));
      if (raised.length === 0) continue;

      const earlier = await earlierThatDay(env, event.deviceId, reading);
      for (const alarm of raised) {
        if (earlier.some((value) => alarm.raisedBy(value.value))) continue;
        console.log(`${alarm.name} alarm: ${reading.value} °F at ${reading.datetime}`);
        await env.ALERTS.send({
          text: `${alarm.name} alarm: ${reading.value} °F at ${reading.datetime} (${event.deviceType})`,
        });
      }
    }
  },
};

async function earlierThatDay(env: Env, deviceId: string, reading: Reading): Promise<Reading[]> {
  const start = `${reading.datetime.slice(0, 10)}T00:00:00.000Z`;
  const values = await env.DEVICES.values(deviceId, KEY, {
    start,
    end: reading.datetime,
    limit: READINGS_MAX,
  });
  return values.filter((value) => value.datetime < reading.datetime);
}
