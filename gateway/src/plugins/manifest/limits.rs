//! What a plugin may take.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

pub const TIME_MS: RangeInclusive<u64> = 1..=5_000;
pub const MEMORY_MIB: RangeInclusive<u64> = 1..=1_024;
pub const OUTPUT_BYTES: RangeInclusive<u64> = 4_096..=16_777_216;
pub const KV_BYTES: RangeInclusive<u64> = 1_024..=67_108_864;
pub const KV_KEYS: RangeInclusive<u64> = 1..=1_000_000;

/// How long a program may take for an answer, in milliseconds; nobody else waits for it.
pub const PROGRAM_TIME_MS: RangeInclusive<u64> = 1..=10_000;

/// Stands for a time that the manifest does not give.
const UNSAID: u64 = u64::MAX;

/// `[limits]`: what one instance may take. There is one instance per worker thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsOfCall {
    /// The longest call, in milliseconds that its thread runs; of a program, in milliseconds.
    #[serde(default = "LimitsOfCall::unsaid_time")]
    pub time_ms: u64,
    /// The linear memory, in MiB.
    pub memory_mib: u64,
    /// The most a plugin may hand to the host in one go — its verdict, one log message — in bytes.
    pub output_bytes: u64,
    /// What it may remember, all instances together: bytes, and keys.
    pub kv_bytes: u64,
    pub kv_keys: u64,
}

impl Default for LimitsOfCall {
    fn default() -> Self {
        Self {
            time_ms: 50,
            memory_mib: 64,
            output_bytes: 262_144,
            kv_bytes: 1_048_576,
            kv_keys: 10_000,
        }
    }
}

impl LimitsOfCall {
    /// What a manifest without `[limits]` says.
    pub(super) fn unsaid() -> Self {
        Self { time_ms: UNSAID, ..Self::default() }
    }

    const fn unsaid_time() -> u64 {
        UNSAID
    }

    /// Gives what the manifest left out the default, which a program has of its own.
    pub(super) fn complete(&mut self, is_program: bool) {
        if self.time_ms == UNSAID {
            self.time_ms =
                if is_program { *PROGRAM_TIME_MS.end() } else { Self::default().time_ms };
        }
    }
}
