// What classic scripts notify people with: `email`, `Twilio`, `Telegram`, and a `Twitter` that says no.
//
// Each call is one host call `connection.send`: with the credentials that the script gives, as such
// scripts always did, else through a stored connection: the one it names, or the one that fits.

// Sends one message. A run ends after the answers to these calls, so that none is refused unheard:
// scripts call back at once, and give no callback here.
function sendOne(where, action, message, callback, answerOf, asTaken = (said) => said) {
  const run = current;
  try {
    const said = asTaken(plain(message, action + ": the message"));
    callLater(run, { __proto__: null, ...where(), action, message: said }, callback, (id) => answerOf(id, said));
  } catch (error) {
    failLater(run, "connection.send", callback, error);
  }
}

function callLater(run, args, callback, answerOf) {
  const waits = run !== null && runs[run.id] === run;
  const settle = () => {
    if (waits && --run.waiting === 0 && run.ended) put(finished, run);
  };
  hostCall(
    run,
    "connection.send",
    args,
    (id) => {
      settle();
      if (typeof callback === "function") callback(null, answerOf(id));
    },
    (error) => {
      settle();
      if (typeof callback === "function") callback(error); // the engine has put it into the log
    },
  );
  if (waits) run.waiting++;
}

// Like an answer of the engine, an error never comes before the call has returned.
function failLater(run, what, callback, error) {
  if (run === null) throw error; // the file is being loaded
  apply(then, promiseOf(), [() => guarded(run, () => tellFailure(what, callback, error))]);
}

function tellFailure(what, callback, error) {
  if (typeof callback === "function") callback(error);
  else logLine("error", [what + ": " + error.message]);
}

// The script's object as it is now: its getters have run, once, and what they change later is not sent.
function plain(message, what) {
  const said = parse(jsonText(message, what));
  if (said === null || typeof said !== "object") throw new TypeError(what + " must be an object");
  return said;
}

// What another run has put on Object.prototype is none of this one's fields.
function bare(value) {
  return setPrototypeOf(value, null);
}

function isGiven(value) {
  return value !== undefined && value !== null && value !== "";
}

function asText(value, what) {
  if (typeof value !== "string") throw new TypeError(what + " must be a text");
  return value;
}

const lowerCase = Function.prototype.call.bind(String.prototype.toLowerCase);
const trim = Function.prototype.call.bind(String.prototype.trim);
const replaceAll = Function.prototype.call.bind(String.prototype.replaceAll);

// -- email

const SERVICES = {
  __proto__: null,
  sendgrid: { kind: "sendgrid", credentialsOf: ({ api_key, apiKey }) => ({ api_key: api_key ?? apiKey }) },
  mandrill: { kind: "mailchimp", credentialsOf: ({ apiKey, api_key }) => ({ transactional_key: apiKey ?? api_key }) },
  ses: {
    kind: "mail",
    credentialsOf: ({ accessKeyId, secretAccessKey, region = "us-east-1" }) => ({ ses: { access_key_id: accessKeyId, secret_access_key: secretAccessKey, region } }),
  },
  gmail: { kind: "mail", credentialsOf: ({ user, pass }) => ({ gmail: { user, app_password: pass } }) },
};

const ANY_MAILER = "email"; // for the engine: whichever kind of connection can send mail

function email(credentials, options, callback) {
  if (options === undefined || typeof options === "function") [credentials, options, callback] = [undefined, credentials, options];
  const where = () => mailerOf(credentials);
  sendOne(where, "send", options, callback, (id, said) => ({ messageId: id, status: "queued", from: said.from, to: said.to }), withList);
}

// Several receivers in one text, as mail programs write them; a comma in quotes parts nobody.
function withList(said) {
  if (typeof said.to === "string" && indexOf(said.to, '"') < 0) {
    const to = list();
    for (let rest = said.to, at = 0; at >= 0; rest = sliceText(rest, at + 1)) {
      at = indexOf(rest, ",");
      const one = trim(at < 0 ? rest : sliceText(rest, 0, at));
      if (one !== "") put(to, one);
    }
    if (to.length > 1) said.to = parse(stringify(to));
  }
  return said;
}

function mailerOf(credentials) {
  if (!isGiven(credentials)) return { kind: ANY_MAILER };
  if (typeof credentials === "string") return { kind: ANY_MAILER, connection: credentials };
  const { connection, service, auth } = bare(plain(credentials, "email: the credentials"));
  if (isGiven(connection)) return { kind: ANY_MAILER, connection: asText(connection, "email: the connection's name") };
  const known = isGiven(service) ? SERVICES[lowerCase("" + service)] : undefined;
  if (isGiven(service) && known === undefined) {
    throw new Error(`email: there is no service ${stringify("" + service)}; there are SendGrid, Mandrill, SES and Gmail, or a stored connection: email({ connection: "NAME" }, ...)`);
  }
  if (!isGiven(auth) || keysOf(auth).length === 0) return { kind: known === undefined ? ANY_MAILER : known.kind };
  if (known === undefined) throw new Error("email: auth needs a service: SendGrid, Mandrill, SES or Gmail");
  return { kind: known.kind, credentials: known.credentialsOf(bare(auth)) };
}

// -- Twilio

class Twilio {
  #where;

  constructor(accountSid, authToken) {
    const where = { kind: "twilio" };
    if (isGiven(authToken)) {
      where.credentials = {
        account_sid: trimmed(asText(accountSid, "Twilio: account_sid")),
        auth_token: trimmed(asText(authToken, "Twilio: auth_token")),
      };
    } else if (isGiven(accountSid)) where.connection = asText(accountSid, "Twilio: the connection's name");
    this.#where = where;
  }

  sendMessage(message, callback) {
    sendOne(() => this.#where, "send", message, callback, twilioAnswer, inTwiliosWords);
  }

  sendSms(message, callback) {
    this.sendMessage(message, callback);
  }

  sendMms(message, callback) {
    this.sendMessage(message, callback);
  }

  makeCall(message, callback) {
    sendOne(() => this.#where, "call", message, callback, twilioAnswer, inTwiliosWords);
  }
}

// Twilio's own library has always taken blanks out.
function trimmed(text) {
  return replaceAll(text, " ", "");
}

// Its old library took `mediaUrl`, `MediaUrl` and numbers that are no texts; its API media_url and texts.
function inTwiliosWords(said) {
  const words = create(null);
  const names = keysOf(said);
  for (let i = 0; i < names.length; i++) {
    const value = said[names[i]];
    const word = inSnakeCase(names[i]);
    if (word === "media_url" && typeof value === "string") words[word] = [value];
    else words[word] = typeof value === "number" ? "" + value : value;
  }
  return words;
}

function inSnakeCase(name) {
  let text = "";
  for (let i = 0; i < name.length; i++) {
    const unit = sliceText(name, i, i + 1);
    const lower = lowerCase(unit);
    text += unit !== lower && i > 0 ? "_" + lower : lower;
  }
  return text;
}

function twilioAnswer(id, said) {
  return { ...said, sid: id, status: "queued", direction: "outbound-api" };
}

// -- Telegram

class Telegram {
  #where;

  constructor(botToken) {
    const where = { kind: "telegram" };
    if (typeof botToken === "string" && indexOf(botToken, ":") > 0) where.credentials = { token: botToken };
    else if (isGiven(botToken)) where.connection = asText(botToken, "Telegram: the bot's token, or a connection's name,");
    this.#where = where;
  }

  sendMessage(message, callback) {
    sendOne(() => this.#where, "send", message, callback, telegramAnswer);
  }

  sendPhoto(message, callback) {
    sendOne(() => this.#where, "sendPhoto", message, callback, telegramAnswer);
  }

  sendLocation(message, callback) {
    sendOne(() => this.#where, "sendLocation", message, callback, telegramAnswer);
  }
}

function telegramAnswer(id, said) {
  return { ...said, message_id: id, chat: { id: said.chat_id } };
}

// -- Twitter

class Twitter {
  postTweet(_message, callback) {
    const error = new Error("posts to Twitter are not supported: the interface that such scripts used is gone. Call the one of today with httpRequest");
    error.code = "not_supported";
    failLater(current, "Twitter", callback, error);
  }
}

// One isolate serves many runs: none may change what the others send with. What the file itself
// declares under such a name, while it is loaded, counts.
const NOTIFIERS = { __proto__: null, email, Twilio, Telegram, Twitter };
for (const name of keysOf(NOTIFIERS)) {
  freeze(NOTIFIERS[name]);
  if (NOTIFIERS[name].prototype !== undefined) freeze(NOTIFIERS[name].prototype);
  defineProperty(globalThis, name, { value: NOTIFIERS[name], writable: true, configurable: true });
}

// The file of a classic script has been evaluated, or that of a module is about to be.
function settleNotifiers(isClassic) {
  for (const name in NOTIFIERS) {
    if (globalThis[name] !== NOTIFIERS[name]) continue;
    if (isClassic) defineProperty(globalThis, name, { __proto__: null, writable: false, configurable: false });
    else delete globalThis[name];
  }
}
