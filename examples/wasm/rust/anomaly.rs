//! Marks readings that are far from what a device usually says: a z-score over its last values.
//!
//!   rustc --edition 2021 -O -C strip=debuginfo --target wasm32-wasip1 --crate-type cdylib anomaly.rs
//!
//! Deploy it on writes of "vibration". How far is too far comes from another service, so that it can
//! be changed for a whole fleet at once: GET THRESHOLD_URL (a variable; its host has to be among the
//! function's allowed_hosts) answers {"z": 3}. If it does not answer, 3 is taken. A reading that is
//! too far is written again as "vibration_z", at its own time.

mod cloudcode;
mod json;

use cloudcode::{call, log, Level};
use json::{object, Json};

const KEY: &str = "vibration";
const Z_KEY: &str = "vibration_z";
const HISTORY: f64 = 50.0; // readings before the one that is looked at
const HISTORY_MIN: usize = 8;
const Z_DEFAULT: f64 = 3.0;

cloudcode::handler!(run);

fn run(event: Json) -> Result<Json, String> {
    let device = event.get("deviceId");
    let mut threshold = None; // asked for once, and only if there is something to compare
    let mut found = Vec::new();
    let readings = event.get("data").get("values").items().iter();
    for reading in readings.filter(|reading| reading.get("key").text() == Some(KEY)) {
        let value = match reading.get("value").number() {
            Some(value) => value,
            None => continue,
        };
        let datetime = reading.get("datetime");
        let z = match z_score(value, &history(device, datetime)?) {
            Some(z) => z,
            None => continue, // nobody can say yet what is usual
        };
        let limit = *threshold.get_or_insert_with(fetched_threshold);
        if z.abs() > limit {
            log(Level::Warn, &format!("{KEY} {value} is {z:.1} standard deviations off, over {limit}"));
            found.push(object([("key", Z_KEY.into()), ("value", z.into()), ("datetime", datetime.clone())]));
        }
    }
    let count = found.len() as f64;
    if !found.is_empty() {
        call("devices.write", object([("device", device.clone()), ("values", Json::List(found))]))?;
    }
    Ok(object([("anomalies", count.into())]))
}

/// The numbers before `datetime`. Reading ends with that moment, so what came in later does not count.
fn history(device: &Json, datetime: &Json) -> Result<Vec<f64>, String> {
    let asked = object([
        ("device", device.clone()),
        ("key", KEY.into()),
        ("end", datetime.clone()),
        ("limit", (HISTORY + 1.0).into()), // `end` is part of it
    ]);
    let values = call("devices.values", asked)?;
    let before = values.items().iter().filter(|value| value.get("datetime") != datetime);
    Ok(before.filter_map(|value| value.get("value").number()).collect())
}

fn z_score(value: f64, history: &[f64]) -> Option<f64> {
    if history.len() < HISTORY_MIN {
        return None;
    }
    let count = history.len() as f64;
    let mean = history.iter().sum::<f64>() / count;
    let variance = history.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (count - 1.0);
    if variance == 0.0 {
        return None; // a sensor that has never moved: every change would be infinitely unusual
    }
    Some((value - mean) / variance.sqrt())
}

fn fetched_threshold() -> f64 {
    match ask_for_threshold() {
        Ok(z) => z,
        Err(why) => {
            log(Level::Warn, &format!("the threshold is {Z_DEFAULT}: {why}"));
            Z_DEFAULT
        }
    }
}

fn ask_for_threshold() -> Result<f64, String> {
    let env = call("env", object([]))?;
    let url = env.get("THRESHOLD_URL").text().ok_or("THRESHOLD_URL is not set")?;
    let accept = Json::List(vec!["accept".into(), "application/json".into()]);
    let answer = call("fetch", object([("url", url.into()), ("headers", Json::List(vec![accept]))]))?;
    if answer.get("status").number() != Some(200.0) {
        return Err(format!("{url} answered {}", answer.get("status")));
    }
    let body = answer.get("body").text().unwrap_or("");
    Json::parse(body)?.get("z").number().ok_or(format!("{url} answered no z"))
}
