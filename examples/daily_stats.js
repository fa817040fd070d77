// Classic Cloud Code, as it runs on thethings.iO today; nothing here is special to this engine.
//
// When the first reading of a new day arrives, the day before it is over: this trigger writes
// that day's lowest, mean and highest temperature, dated at its start (UTC). A write may carry
// readings of several days; then every day that it closes is written.
//
// It decides from stored values only. All readings of a write are stored before the trigger runs,
// and runs of different writes may overlap, so counting in a variable would go wrong.

var KEY = 'temp';
var DAY_MS = 24 * 60 * 60 * 1000;
var READINGS_MAX = 100; // of one day: hourly readings, with room to spare

function trigger(params, callback) {
  if (params.action !== 'write') return callback();

  var token = params.thingToken;
  var days = daysOf(params.values);
  var results = [];

  // One day after the other, because each step waits for a read.
  function next(i) {
    if (i === days.length) return save(token, results, callback);
    closeDayBefore(token, days[i], function (error, result) {
      if (error) return callback(String(error.message || error));
      results = results.concat(result);
      next(i + 1);
    });
  }
  next(0);
}

// The days in this write, oldest first: when each starts, and its earliest reading in this write.
function daysOf(values) {
  var earliest = {};
  values.forEach(function (reading) {
    if (reading.key !== KEY) return;
    var at = new Date(reading.datetime).getTime();
    var start = startOfDay(at);
    if (!(start in earliest) || at < earliest[start]) earliest[start] = at;
  });
  return Object.keys(earliest).map(Number).sort(ascending).map(function (start) {
    return { start: start, first: earliest[start] };
  });
}

// Calls back with the statistics of the last day that has readings before `day`. With none, when
// `day` had a reading before this write: then an earlier run has closed that day.
function closeDayBefore(token, day, callback) {
  read(token, day.start, day.first - 1, 1, function (error, sameDay) {
    if (error || sameDay.length > 0) return callback(error, []);

    // The last reading, not simply yesterday: a device may have been silent for days.
    read(token, 0, day.start - 1, 1, function (error, last) {
      if (error || last.length === 0) return callback(error, []);

      var start = startOfDay(new Date(last[0].datetime).getTime());
      read(token, start, start + DAY_MS - 1, READINGS_MAX, function (error, readings) {
        callback(error, error ? [] : statistics(start, readings));
      });
    });
  });
}

function read(token, startMs, endMs, limit, callback) {
  if (endMs < startMs) return callback(null, []);
  thethingsAPI.thingRead(token, KEY, {
    startDate: new Date(startMs).toISOString(),
    endDate: new Date(endMs).toISOString(),
    limit: limit,
    lib: 'panel'
  }, callback);
}

// thingRead answers newest first. The sum runs from the oldest on, so that it is always the same.
function statistics(start, readings) {
  var numbers = readings.map(function (reading) { return reading.value; }).reverse();
  var sum = numbers.reduce(function (total, number) { return total + number; }, 0);
  var mean = Math.round(sum / numbers.length * 100) / 100;
  var datetime = new Date(start).toISOString();
  console.log(datetime.slice(0, 10) + ' is over: ' + numbers.length + ' readings, mean ' + mean);
  return [
    { key: 'temp_daily_min', value: Math.min.apply(null, numbers), datetime: datetime },
    { key: 'temp_daily_mean', value: mean, datetime: datetime },
    { key: 'temp_daily_max', value: Math.max.apply(null, numbers), datetime: datetime }
  ];
}

function save(token, values, callback) {
  if (values.length === 0) return callback();
  thethingsAPI.thingWrite(token, { values: values }, callback);
}

function startOfDay(at) {
  return at - at % DAY_MS;
}

function ascending(a, b) {
  return a - b;
}
