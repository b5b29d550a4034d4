//! The wasmtime engine all plugins share, and the clock that ends calls which run too long.

use std::{io, thread, time::Duration};

use wasmtime::{Config, Engine};

use crate::tasks;

/// How often the epoch moves on. A call's time limit is exact to about two of these.
const TICK: Duration = Duration::from_millis(5);

/// The stack of a guest, in bytes. It lives on the worker thread's own stack of 2 MiB.
const STACK_BYTES: usize = 512 * 1024;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("WebAssembly does not run on this machine: {0:#}")]
    Config(wasmtime::Error),
    #[error("no thread for the time limits of plugins: {0}")]
    Ticker(#[from] io::Error),
}

/// Makes an engine and starts its ticker, a thread that ends soon after the engine's last clone is
/// dropped.
///
/// # Errors
/// When the machine cannot run the compiled code or has no thread left.
pub fn start() -> Result<Engine, EngineError> {
    let engine = Engine::new(&config()).map_err(EngineError::Config)?;
    let ticked = engine.weak();
    tasks::thread("plugin-epochs", move || {
        while let Some(engine) = ticked.upgrade() {
            engine.increment_epoch();
            // Not held while asleep, or the ticker would keep the engine alive.
            drop(engine);
            thread::sleep(TICK);
        }
    })?;
    Ok(engine)
}

/// An engine that only compiles, for the other one, and on the caller's thread alone: while events
/// are judged, the machine is theirs.
///
/// # Errors
/// When the machine cannot run the compiled code.
pub fn quiet_compiler() -> Result<Engine, EngineError> {
    Engine::new(config().parallel_compilation(false)).map_err(EngineError::Config)
}

fn config() -> Config {
    let mut config = Config::new();
    config.wasm_component_model(true);
    // Time, not instructions: fuel costs as much and bounds no wall time.
    config.epoch_interruption(true);
    config.max_wasm_stack(STACK_BYTES);
    config
}

/// The number of epochs after which a limit of `time_ms` milliseconds has passed for certain.
pub fn epochs(time_ms: u64) -> u64 {
    let tick = u64::try_from(TICK.as_millis()).unwrap_or(1);
    // The first tick may come at once.
    time_ms.div_ceil(tick) + 1
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_limit_is_never_shorter_than_asked() {
        assert_eq!(epochs(1), 2);
        assert_eq!(epochs(50), 11);
        assert_eq!(epochs(51), 12);
    }

    #[test]
    fn the_ticker_does_not_keep_the_engine() {
        let engine = start().unwrap();
        let weak = engine.weak();
        drop(engine);
        let started = Instant::now();
        while weak.upgrade().is_some() {
            assert!(started.elapsed() < Duration::from_secs(5), "the engine lives on");
            thread::sleep(TICK);
        }
    }
}
