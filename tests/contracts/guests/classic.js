// A classic script: globals that call back.

const called = (work) => new Promise((resolve, reject) => work((error, result) => (error ? reject(error) : resolve(result))));

const world = {
  read: async ({ device, key, ...options }) => (await called((done) => thethingsAPI.thingRead(device, key, options, done))).map((one) => one.value),
  write: async ({ device, values }) => void (await called((done) => thethingsAPI.thingWrite(device, { values }, done))),
  list: async () => (await called((done) => thethingsAPI.getProductThings(done))).map((thing) => thing.description.name),
  send: async ({ connection, message }) => (await called((done) => new Twilio(connection).sendMessage(message, done))).sid,
  fetch: async ({ url, method = "GET", body }) => {
    const { host, pathname, search } = new URL(url);
    const answer = await called((done) => httpRequest({ host, path: pathname + search, method }, body, done));
    return { status: answer.statusCode, mine: answer.headers["x-mine"] ?? null, body: answer.result };
  },
};

function handle(input, callback) {
  begin(input, world).then((result) => callback(null, result), callback);
}
const main = handle, job = handle, trigger = handle;
