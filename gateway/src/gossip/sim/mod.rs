//! Whole swarms in one thread and without a network: a discrete-event simulator, for the tests.
//!
//! What decides is the code that runs in a gateway: the state machines of iroh-gossip
//! (`iroh_gossip::proto`), and of ours the frames, [`super::outbound::Lineup`], the pace of discovery
//! ([`super::pace`]), the joiner's rules, the schedule of fetches, the door, and the plans, turns and
//! sets of comparisons. What is made up is what lies between them: the clock, the links, the DHT, and —
//! because the library keeps it private — how iroh-gossip 0.101 looks after its connections (`shell.rs`;
//! `tests/absent.rs` shows with real endpoints that it does so).
//!
//! Everything random comes from one seed, and so does the trace: what a test finds can be seen again.

mod compare;
mod happening;
mod links;
mod ours;
mod reports;
mod shell;
mod swarms;
mod world;
