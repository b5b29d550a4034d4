//! Signs a set of events on all cores, into the file that later runs read.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use crossbeam_channel::bounded;
use secp256k1::Keypair;

use super::{
    dataset::{Facts, Spec, Unsigned, keypair, sign},
    generator::Generator,
};
use crate::cli::progress::Progress;
use crate::tasks;

/// Events that one thread signs at a time.
const BATCH: usize = 512;

/// Where a set is kept.
#[derive(Debug, Clone)]
pub struct Place {
    directory: PathBuf,
    name: String,
}

impl Place {
    pub fn new(directory: PathBuf, spec: &Spec) -> Self {
        let Spec { version, seed, events, authors, .. } = spec;
        Self { directory, name: format!("v{version}-seed{seed}-{events}x{authors}") }
    }

    /// One EVENT message per line.
    pub fn frames(&self) -> PathBuf {
        self.directory.join(format!("{}.jsonl", self.name))
    }

    /// What is known of them. Written last: where it is, the frames are complete.
    pub fn facts(&self) -> PathBuf {
        self.directory.join(format!("{}.facts.json", self.name))
    }

    /// The name of a file of this process until it is complete.
    fn part(&self) -> PathBuf {
        self.directory.join(format!("{}.part-{}", self.name, std::process::id()))
    }

    /// Removes what an interrupted run would leave.
    pub fn forget_part(&self) {
        // It is usually not there.
        let _ = fs::remove_file(self.part());
    }
}

/// The set at this place if it is complete and is the one of `spec`, but for its age.
pub fn cached(place: &Place, spec: &Spec, max_age_s: u64) -> Option<Facts> {
    let facts: Facts = serde_json::from_slice(&fs::read(place.facts()).ok()?).ok()?;
    let age = spec.ends_at.checked_sub(facts.spec.ends_at)?;
    let is_same = facts.spec == Spec { ends_at: facts.spec.ends_at, ..spec.clone() };
    // Ten bytes of `["EVENT",` and `]`, and a newline.
    let length = facts.bytes + 11 * facts.spec.events;
    let is_whole = fs::metadata(place.frames()).is_ok_and(|found| found.len() == length);
    (is_same && is_whole && facts.is_sound() && age <= max_age_s).then_some(facts)
}

/// Signs all events of `spec` and writes them. Blocks for about 40 µs an event and core.
///
/// # Errors
/// When the files cannot be written or no thread can be started.
pub fn write(place: &Place, spec: Spec, progress: &Progress) -> io::Result<Facts> {
    fs::create_dir_all(&place.directory)?;
    let part = place.part();
    let result = write_part(&part, spec, progress).and_then(|facts| {
        // Without facts the frames do not count; so the old facts go first.
        let _ = fs::remove_file(place.facts());
        fs::rename(&part, place.frames())?;
        fs::write(&part, serde_json::to_vec(&facts)?)?;
        fs::rename(&part, place.facts())?;
        Ok(facts)
    });
    if result.is_err() {
        place.forget_part();
    }
    result
}

fn write_part(path: &Path, spec: Spec, progress: &Progress) -> io::Result<Facts> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let facts = signed(spec, |lines, events| {
        file.write_all(lines.as_bytes())?;
        progress.add(events);
        Ok(())
    })?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(facts)
}

/// Makes and signs all events, and hands the lines over in their order.
fn signed(spec: Spec, mut take: impl FnMut(&str, u64) -> io::Result<()>) -> io::Result<Facts> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let keys: Arc<Vec<Keypair>> =
        Arc::new((0..spec.authors).map(|author| keypair(spec.seed, author)).collect());
    // Both queues are short: a producer that is ahead waits.
    let (batches, to_sign) = bounded::<(u64, Vec<Unsigned>)>(2 * cores);
    let (results, done) = bounded::<(u64, u64, String)>(2 * cores);
    let (facts_to, facts) = bounded::<Facts>(1);
    tasks::thread("bench-generate", move || {
        let mut generator = Generator::new(spec);
        for number in 0.. {
            let batch: Vec<Unsigned> = generator.by_ref().take(BATCH).collect();
            // Whoever does not want the events any more does not want the facts either.
            if batch.is_empty() || batches.send((number, batch)).is_err() {
                break;
            }
        }
        let _ = facts_to.send(generator.facts());
    })?;
    for number in 0..cores {
        let (to_sign, results, keys) = (to_sign.clone(), results.clone(), keys.clone());
        tasks::thread(format!("bench-sign-{number}"), move || {
            for (number, batch) in to_sign {
                let mut lines = String::with_capacity(batch.len() * 640);
                for event in &batch {
                    sign(event, &keys[event.author as usize], &mut lines);
                }
                if results.send((number, batch.len() as u64, lines)).is_err() {
                    break;
                }
            }
        })?;
    }
    drop((to_sign, results));
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (number, events, lines) in done {
        early.insert(number, (events, lines));
        while let Some((events, lines)) = early.remove(&next) {
            take(&lines, events)?;
            next += 1;
        }
    }
    facts.recv().map_err(|_| io::Error::other("the generator ended early"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec { version: Spec::VERSION, seed: 3, events: 2_000, authors: 10, ends_at: 1_800_000_000 }
    }

    #[test]
    fn a_set_is_written_in_order_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(directory.path().join("cache"), &spec());
        assert_eq!(cached(&place, &spec(), 0), None);
        let facts = write(&place, spec(), &Progress::silent()).unwrap();
        assert_eq!(cached(&place, &spec(), 0), Some(facts.clone()));

        let text = fs::read_to_string(place.frames()).unwrap();
        assert_eq!(text.lines().count(), 2_000);
        for (line, unsigned) in text.lines().zip(Generator::new(spec())) {
            assert!(line.starts_with(&unsigned.head));
        }
        assert_eq!(fs::read_dir(directory.path().join("cache")).unwrap().count(), 2);

        // Another set, an old one and a damaged one are not taken for it.
        assert_eq!(cached(&place, &Spec { seed: 4, ..spec() }, 0), None);
        let later = Spec { ends_at: 1_800_000_100, ..spec() };
        assert_eq!(cached(&place, &later, 99), None);
        assert_eq!(cached(&place, &later, 100), Some(facts.clone()));
        fs::write(place.frames(), &text[1..]).unwrap();
        assert_eq!(cached(&place, &spec(), 0), None);
        fs::write(place.frames(), &text).unwrap();
        let wrong = Facts { pairs: vec![(10, 0)], ..facts };
        fs::write(place.facts(), serde_json::to_vec(&wrong).unwrap()).unwrap();
        assert_eq!(cached(&place, &spec(), 0), None);
    }
}
