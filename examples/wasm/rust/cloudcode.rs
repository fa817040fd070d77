//! The engine's host calls for functions of the core kind, in Rust. See ../README.md for the ABI.
//!
//! The function is `fn run(event: Json) -> Result<Json, String>`; `cloudcode::handler!(run)` exports
//! it. An `Err` is a line in the log and ends the run as failed: nothing that it wrote is kept.

use crate::json::{object, Json};
use std::cell::RefCell;

#[allow(dead_code)] // a function need not use all of them
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[link(wasm_import_module = "engine")]
extern "C" {
    #[link_name = "call"]
    fn engine_call(at: *const u8, length: usize) -> u64;
    #[link_name = "log"]
    fn engine_log(level: i32, at: *const u8, length: usize);
}

extern "C" {
    fn __wasm_call_ctors(); // made by the linker
}

/// The engine calls this once per instance. Without it the linker would set the C library up anew in
/// every call of an export.
#[no_mangle]
pub extern "C" fn _initialize() {
    unsafe { __wasm_call_ctors() }
}

/// Gives the engine room to write to: for the event, and for the answer of each host call.
#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    // A boxed slice has exactly `size` bytes, which `take` needs to know to free them.
    Box::into_raw(vec![0u8; size].into_boxed_slice()) as *mut u8
}

/// Takes back what the engine has written into room from `alloc`.
fn take(at: *mut u8, length: usize) -> String {
    // Safety: the engine hands over each room once, with the size that it asked for.
    let bytes = unsafe { Box::from_raw(std::slice::from_raw_parts_mut(at, length)) };
    String::from_utf8(bytes.into_vec()).expect("the engine writes UTF-8")
}

thread_local! {
    static LAST_RESULT: RefCell<String> = RefCell::new(String::new()); // read after `handle` returned
}

pub fn handle(at: *mut u8, length: usize, run: fn(Json) -> Result<Json, String>) -> u64 {
    let result = Json::parse(&take(at, length)).and_then(run);
    let json = match result {
        Ok(value) => value.to_string(),
        Err(why) => {
            log(Level::Error, &why);
            std::process::abort()
        }
    };
    LAST_RESULT.with(|last| {
        let mut last = last.borrow_mut();
        *last = json;
        (last.as_ptr() as u64) << 32 | last.len() as u64
    })
}

macro_rules! handler {
    ($run:path) => {
        #[no_mangle]
        pub extern "C" fn handle(at: *mut u8, length: usize) -> u64 {
            crate::cloudcode::handle(at, length, $run)
        }
    };
}
pub(crate) use handler;

pub fn log(level: Level, text: &str) {
    unsafe { engine_log(level as i32, text.as_ptr(), text.len()) }
}

/// Makes a host call; `Err` is the engine's reason for refusing it.
pub fn call(operation: &str, arguments: Json) -> Result<Json, String> {
    let request = object([("operation", operation.into()), ("arguments", arguments)]).to_string();
    let found = unsafe { engine_call(request.as_ptr(), request.len()) };
    let answer = Json::parse(&take((found >> 32) as usize as *mut u8, found as u32 as usize))?;
    if answer.get("ok") != &Json::Bool(true) {
        return Err(answer.get("error").get("message").text().unwrap_or("refused").to_string());
    }
    Ok(answer.get("value").clone())
}
