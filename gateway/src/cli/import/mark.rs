//! How far an import that was broken off had come: a small file in the data directory.

use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::protocol::hex;

const FILE: &str = "import.json";
/// How often it is written. What came after it is imported again, and known.
const EVERY: Duration = Duration::from_secs(1);
/// Bytes before the position by which a file is recognized.
const TAIL: u64 = 16 << 10;

/// Behind the last line of which everything before is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub line: u64,
    pub offset: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    file: PathBuf,
    #[serde(flatten)]
    position: Position,
    /// SHA-256 of what stands before the position.
    tail: String,
}

/// The mark of one file in one data directory. There is one mark: that of the last import.
pub(super) struct Mark {
    path: PathBuf,
    /// Absolute; nothing for the standard input.
    file: Option<PathBuf>,
    reached: Cell<Option<Position>>,
    written: RefCell<Option<(Instant, Position)>>,
}

impl Mark {
    pub fn new(data_dir: &Path, file: &Path) -> Self {
        let file = (file != Path::new("-")).then(|| fs::canonicalize(file).ok()).flatten();
        Self {
            path: data_dir.join(FILE),
            file,
            reached: Cell::default(),
            written: RefCell::default(),
        }
    }

    /// Everything up to there is in.
    pub fn reached(&self, position: &Position) {
        self.reached.set(Some(*position));
        let due = self.written.borrow().is_none_or(|(at, _)| at.elapsed() >= EVERY);
        if due {
            self.save();
        }
    }

    /// Writes down how far it came.
    pub fn save(&self) {
        let (Some(file), Some(position)) = (&self.file, self.reached.get()) else { return };
        if self.written.borrow().is_some_and(|(_, written)| written == position) {
            return;
        }
        let save = || -> io::Result<()> {
            let written =
                Written { file: file.clone(), position, tail: tail(file, position.offset)? };
            let draft = self.path.with_extension("new");
            fs::write(&draft, serde_json::to_vec(&written)?)?;
            fs::rename(draft, &self.path)
        };
        // Without it the import is begun anew, which is slower and as good.
        if save().is_ok() {
            *self.written.borrow_mut() = Some((Instant::now(), position));
        }
    }

    /// The file is in.
    pub fn forget(&self) {
        if self.is_of_this_file() {
            let _ = fs::remove_file(&self.path);
        }
    }

    fn is_of_this_file(&self) -> bool {
        self.load().is_some_and(|written| Some(&written.file) == self.file.as_ref())
    }

    fn load(&self) -> Option<Written> {
        serde_json::from_slice(&fs::read(&self.path).ok()?).ok()
    }

    /// Where to go on.
    ///
    /// # Errors
    /// When no import of this file was broken off here, or the file has changed.
    pub fn read(&self) -> Result<Position, String> {
        let again = "import it without --resume: what is known is passed over";
        let file = self.file.as_deref().unwrap_or(Path::new("-"));
        let shown = file.display();
        let written = self.load().filter(|written| written.file == file);
        let Some(Written { position, tail: known, .. }) = written else {
            return Err(format!("no import of {shown} was broken off here; {again}"));
        };
        match tail(file, position.offset) {
            Ok(now) if now == known => Ok(position),
            Ok(_) => Err(format!(
                "{shown} is not what it was: line {} and those before it have changed; {again}",
                position.line
            )),
            Err(error) => {
                Err(format!("{shown} cannot be read up to line {}: {error}", position.line))
            }
        }
    }

    /// What to do after it was broken off.
    pub fn advice(&self) -> String {
        match self.load().filter(|_| self.is_of_this_file()) {
            Some(Written { position, .. }) => {
                format!("The same command with --resume goes on behind line {}.", position.line)
            }
            None => "Import it again for the rest: what is known is passed over.".to_owned(),
        }
    }
}

/// What tells whether a file is the same up to there.
fn tail(file: &Path, offset: u64) -> io::Result<String> {
    let length = offset.min(TAIL);
    let mut opened = File::open(file)?;
    opened.seek(SeekFrom::Start(offset - length))?;
    let mut bytes = Vec::new();
    opened.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(hex::encode(&Sha256::digest(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_gone_on_with_as_long_as_it_is_the_same() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("events.jsonl");
        fs::write(&file, "one\ntwo\nthree\n").unwrap();
        let mark = Mark::new(data.path(), &file);
        assert!(mark.read().unwrap_err().contains("was broken off here"));
        let at = Position { line: 2, offset: 8 };
        mark.reached(&at);
        assert!(mark.advice().contains("--resume goes on behind line 2"));
        assert_eq!(Mark::new(data.path(), &file).read(), Ok(at));

        fs::write(&file, "one\ntwo\nthree\nand more\n").unwrap();
        assert_eq!(mark.read(), Ok(at), "what comes behind may grow");
        fs::write(&file, "one\ntow\nthree\n").unwrap();
        assert!(mark.read().unwrap_err().contains("line 2"));
        fs::write(&file, "one\n").unwrap();
        assert!(mark.read().is_err());

        let other = data.path().join("other.jsonl");
        fs::write(&other, "one\ntwo\n").unwrap();
        let other = Mark::new(data.path(), &other);
        assert!(other.read().is_err());
        other.forget();
        assert!(mark.load().is_some(), "it is another file's");
        mark.forget();
        assert!(mark.load().is_none());
        let stdin = Mark::new(data.path(), Path::new("-"));
        stdin.reached(&at);
        stdin.save();
        assert!(stdin.advice().contains("again") && stdin.load().is_none());
    }
}
