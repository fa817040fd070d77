// Answers HTTP: GET /f/PROJECT/forecast?device=dev_...
//
// Takes what daily_stats.js has stored for the last days, guesses that tomorrow is like their
// mean, and asks another service to turn Fahrenheit into Celsius. That service must be among the
// function's allowed hosts, and its address is a variable: DEGREES_URL.

const DAYS = 3;

export default {
  async fetch(request, env, ctx) {
    const device = new URL(request.url).searchParams.get("device");
    if (!device) return problem(400, "give ?device=dev_...");

    const means = await env.DEVICES.values(device, "temp_daily_mean", { limit: DAYS });
    if (means.length === 0) return problem(404, "no daily statistics of this device yet");

    const fahrenheit = round(means.reduce((sum, day) => sum + day.value, 0) / means.length);
    const answer = await fetch(`${env.DEGREES_URL}/celsius?fahrenheit=${fahrenheit}`);
    if (!answer.ok) return problem(502, `the degrees service answered ${answer.status}`);
    const { celsius } = await answer.json();

    return Response.json({
      device,
      basedOn: means.map((day) => ({ date: day.datetime.slice(0, 10), mean: day.value })),
      tomorrow: { fahrenheit, celsius },
    });
  },
};

function round(value) {
  return Math.round(value * 100) / 100;
}

function problem(status, detail) {
  return Response.json({ status, detail }, { status });
}
