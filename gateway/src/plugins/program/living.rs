//! One process of a program: asking it, listening to it, ending it.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    time::{sleep, timeout},
};

use super::{
    launch::Launch,
    lines::{Line, Lines},
    talk,
};
use crate::{
    plugins::{
        bindings::nostr_gateway::plugin::log::Level, capabilities::PluginLog, instance::Failure,
        printable::one_line, verdict::Verdict,
    },
    protocol::EventId,
};

/// The longest line for the log, in bytes.
const LOG_LINE_BYTES: usize = 4_096;

/// How much of its last line the cause of a failure tells, in bytes.
const LAST_WORDS_BYTES: usize = 200;

/// How long one that ended is listened to for its last words.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long one that is to end may take for it.
const TO_END: Duration = Duration::from_secs(1);

/// How long the system may take to end it.
const TO_DIE: Duration = Duration::from_secs(5);

/// A process that was started and has not been seen to end.
pub struct Living {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<ChildStdout>,
    stderr: Lines<ChildStderr>,
    /// The most bytes of an answer.
    max: usize,
    log: Arc<PluginLog>,
    last_words: String,
}

impl Living {
    /// Starts it.
    ///
    /// # Errors
    /// When the system cannot.
    pub fn start(launch: &Launch, max: usize, log: Arc<PluginLog>) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::Program(format!("it cannot be started: {error}"));
        let mut child = launch.start().map_err(failed)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed(io::Error::other("it has no pipes")));
        };
        let (stdout, stderr) = (Lines::new(stdout, max), Lines::new(stderr, LOG_LINE_BYTES));
        Ok(Self { child, stdin, stdout, stderr, max, log, last_words: String::new() })
    }

    /// Asks about one event. After a failure it must be ended.
    ///
    /// # Errors
    /// When it takes longer, ends, or writes anything but an answer to this.
    pub async fn ask(
        &mut self,
        request: &[u8],
        id: &EventId,
        time_ms: u64,
    ) -> Result<Verdict, Failure> {
        let answer = {
            let (stdin, stdout) = (&mut self.stdin, &mut self.stdout);
            let exchange = async {
                stdin.write_all(request).await?;
                stdout.next().await
            };
            let mut exchange = pin!(timeout(Duration::from_millis(time_ms), exchange));
            loop {
                tokio::select! {
                    biased;
                    answer = &mut exchange => break answer,
                    line = self.stderr.next(), if !self.stderr.has_ended() => {
                        note(&self.log, &mut self.last_words, line);
                    }
                }
            }
        };
        match answer {
            Ok(Ok(Line::Whole(line))) => talk::verdict(&line, id),
            Ok(Ok(Line::Cut(_))) => {
                Err(Failure::Output(u64::try_from(self.max).unwrap_or(u64::MAX)))
            }
            Ok(Ok(Line::End) | Err(_)) => Err(self.ended().await),
            Err(_) => Err(Failure::Time(time_ms)),
        }
    }

    /// Listens to it until something else happens.
    ///
    /// # Errors
    /// When it ends meanwhile, or writes what nobody asked for. It must be ended then.
    pub async fn attend<T>(&mut self, other: impl Future<Output = T>) -> Result<T, Failure> {
        let mut other = pin!(other);
        loop {
            tokio::select! {
                // One that has ended is seen before it is asked.
                biased;
                line = self.stdout.next() => return Err(match line {
                    Ok(Line::Whole(line) | Line::Cut(line)) => Failure::Program(format!(
                        "it wrote a line that nobody asked for: {}",
                        one_line(&String::from_utf8_lossy(&line), LAST_WORDS_BYTES)
                    )),
                    Ok(Line::End) | Err(_) => self.ended().await,
                }),
                happened = &mut other => return Ok(happened),
                line = self.stderr.next(), if !self.stderr.has_ended() => {
                    note(&self.log, &mut self.last_words, line);
                }
            }
        }
    }

    /// How it ended, with its last words.
    async fn ended(&mut self) -> Failure {
        let _ = timeout(LAST_WORDS, async {
            while !self.stderr.has_ended() {
                let line = self.stderr.next().await;
                note(&self.log, &mut self.last_words, line);
            }
        })
        .await;
        // One that only closed its pipe would live on.
        self.signal_all(true);
        let how = match timeout(TO_DIE, self.child.wait()).await {
            Ok(Ok(status)) => format!("it ended ({status})"),
            _ => "it closed its standard output".to_owned(),
        };
        Failure::Program(match self.last_words.as_str() {
            "" => how,
            words => format!("{how}: {words}"),
        })
    }

    /// Ends it and all that it started, at once.
    pub async fn kill(mut self) {
        self.signal_all(true);
        // The system has it on its list until then.
        let _ = timeout(TO_DIE, self.child.wait()).await;
    }

    /// Lets it end: it sees the end of its input and a signal, and has a moment.
    pub async fn retire(self) {
        let Self { child, stdin, mut stdout, mut stderr, log, mut last_words, .. } = self;
        drop(stdin);
        signal(&child, false);
        let _ = timeout(TO_END, async {
            loop {
                tokio::select! {
                    line = stdout.next() => if matches!(line, Ok(Line::End) | Err(_)) { return },
                    line = stderr.next(), if !stderr.has_ended() => {
                        note(&log, &mut last_words, line);
                    }
                }
            }
        })
        .await;
        signal(&child, true);
        let mut child = child;
        let _ = timeout(TO_DIE, child.wait()).await;
    }

    fn signal_all(&self, kill: bool) {
        signal(&self.child, kill);
    }
}

/// Tells the process and all that it started to end. Only before it was waited for: until then its
/// number is nobody else's.
fn signal(child: &Child, kill: bool) {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, Signal, kill_process_group};
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(id) = id {
            // It may have ended.
            let _ = kill_process_group(id, if kill { Signal::KILL } else { Signal::TERM });
        }
    }
    #[cfg(not(unix))]
    let _ = (child, kill);
}

/// A line that it wrote to its standard error is one for the log.
fn note(log: &PluginLog, last_words: &mut String, line: io::Result<Line>) {
    if let Ok(Line::Whole(line) | Line::Cut(line)) = line {
        let line = String::from_utf8_lossy(&line);
        *last_words = one_line(&line, LAST_WORDS_BYTES);
        log.write(Level::Info, &line);
    }
}

/// Whether one that was just started stays.
pub async fn stays(living: &mut Living, time: Duration) -> Result<(), Failure> {
    living.attend(sleep(time)).await
}
