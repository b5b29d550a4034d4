//! What the system knows of a gateway's process (Linux).

use std::fs;

use crate::Gateway;

/// `Private_Clean` and `Private_Dirty` of a process.
pub fn private_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = text.lines().filter_map(|line| line.strip_prefix("Private_"));
    let kilobytes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.sum::<u64>() * 1_024
}

/// Processor time of a gateway so far, user and system.
pub fn cpu_seconds(gateway: &Gateway) -> f64 {
    let text = fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap();
    let (_, after) = text.rsplit_once(") ").unwrap();
    let ticks: f64 =
        after.split(' ').skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}
