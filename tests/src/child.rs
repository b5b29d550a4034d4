//! A child process whose output is kept, which is waited for with deadlines, and which dies with its
//! owner.

use std::{
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{ChildStdin, Command},
    sync::watch,
    time::{Instant, timeout_at},
};

/// A line of output and where it was written.
#[derive(Clone, Debug)]
struct Line {
    is_stderr: bool,
    text: String,
}

/// Everything a child has written so far.
#[derive(Clone)]
struct Output {
    lines: Arc<Mutex<Vec<Line>>>,
    /// How many of the two streams have not ended; changes with every line as well.
    open: watch::Sender<usize>,
}

/// A running child. It is killed when this is dropped; when the test fails, its output is printed.
pub struct Child {
    name: String,
    process: tokio::process::Child,
    stdin: Option<ChildStdin>,
    output: Output,
}

impl Child {
    /// Starts it. Panics when that is not possible.
    pub fn spawn(name: impl Into<String>, command: std::process::Command) -> Self {
        let name = name.into();
        let mut process = Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let output = Output { lines: Arc::default(), open: watch::Sender::new(2) };
        tokio::spawn(output.clone().collect(process.stdout.take().unwrap(), false));
        tokio::spawn(output.clone().collect(process.stderr.take().unwrap(), true));
        let stdin = process.stdin.take();
        Self { name, process, stdin, output }
    }

    /// Waits for a line on standard output that satisfies `wanted`, also one written before.
    pub async fn stdout_line(&self, deadline: Duration, wanted: impl Fn(&str) -> bool) -> String {
        self.line(deadline, "standard output", |line| !line.is_stderr && wanted(&line.text)).await
    }

    /// The same for standard error.
    pub async fn stderr_line(&self, deadline: Duration, wanted: impl Fn(&str) -> bool) -> String {
        self.line(deadline, "standard error", |line| line.is_stderr && wanted(&line.text)).await
    }

    async fn line(
        &self,
        deadline: Duration,
        stream: &str,
        wanted: impl Fn(&Line) -> bool,
    ) -> String {
        let mut open = self.output.open.subscribe();
        let search = async {
            loop {
                // In this order: what is written before the end is seen before the end.
                let has_ended = *open.borrow_and_update() == 0;
                let found = self.output.lines.lock().unwrap().iter().find(|l| wanted(l)).cloned();
                match found {
                    Some(line) => return Some(line.text),
                    None if has_ended => return None,
                    // The sender lives in self.output.
                    None => open.changed().await.unwrap(),
                }
            }
        };
        let why = match tokio::time::timeout(deadline, search).await {
            Ok(Some(text)) => return text,
            Ok(None) => "ended and did not write the expected line".to_owned(),
            Err(_) => format!("did not write the expected line within {deadline:?}"),
        };
        panic!("{} {why} to {stream}", self.name);
    }

    /// The next line on standard output after the `seen` first ones, which it counts on; nothing when
    /// the child has ended or the deadline has passed.
    pub async fn next_stdout_line(&self, seen: &mut usize, deadline: Instant) -> Option<String> {
        let mut open = self.output.open.subscribe();
        loop {
            let has_ended = *open.borrow_and_update() == 0;
            if let Some(line) = self.stdout().into_iter().nth(*seen) {
                *seen += 1;
                return Some(line);
            }
            if has_ended || timeout_at(deadline, open.changed()).await.is_err() {
                return None;
            }
        }
    }

    /// What it wrote to standard output.
    pub fn stdout(&self) -> Vec<String> {
        self.output.lines(false)
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> Vec<String> {
        self.output.lines(true)
    }

    /// Writes a line to its standard input.
    pub async fn write_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("the child reads its input");
        stdin.flush().await.expect("the child reads its input");
    }

    /// Writes the last of its standard input, as it is, and closes it.
    pub async fn end_input(&mut self, text: &str) {
        let mut stdin = self.stdin.take().expect("standard input is open");
        stdin.write_all(text.as_bytes()).await.expect("the child reads its input");
        stdin.shutdown().await.expect("the child reads its input");
    }

    /// Its process id, or that of the program it became; nothing after its end.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Sends a signal by its name: `INT`, `TERM`, `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        let Some(id) = self.process.id() else { return };
        let status = std::process::Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", signal, &id.to_string()])
            .status()
            .expect("a shell to send signals with");
        assert!(status.success(), "{} cannot be sent SIG{signal}", self.name);
    }

    /// Waits until it has ended and all that it wrote is here.
    pub async fn exit(&mut self, deadline: Duration) -> ExitStatus {
        let mut open = self.output.open.subscribe();
        let end = async {
            let status = self.process.wait().await.expect("a child can be waited for");
            open.wait_for(|open| *open == 0).await.expect("the sender lives in self.output");
            status
        };
        let Ok(status) = tokio::time::timeout(deadline, end).await else {
            panic!("{} did not end within {deadline:?}", self.name);
        };
        status
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(&mut self) {
        self.process.kill().await.expect("a child can be killed");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- output of {} ----", self.name);
            for line in self.output.lines.lock().unwrap().iter() {
                println!("{} {}", if line.is_stderr { "2>" } else { "1>" }, line.text);
            }
        }
    }
}

impl Output {
    async fn collect(self, stream: impl AsyncRead + Unpin, is_stderr: bool) {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(text)) = lines.next_line().await {
            self.lines.lock().unwrap().push(Line { is_stderr, text });
            self.open.send_modify(|_| {});
        }
        self.open.send_modify(|open| *open -= 1);
    }

    fn lines(&self, is_stderr: bool) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|l| l.is_stderr == is_stderr).map(|l| l.text.clone()).collect()
    }
}
