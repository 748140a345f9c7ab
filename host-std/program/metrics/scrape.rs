//! Asks all servers at once, and waits for none of them long.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use host_std::serve::control::{Client, Reply, Report, Request};

use super::encode::Scraped;

/// How long a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(900);

/// What the servers say, in the order of their control sockets.
pub(super) fn scrape(controls: &[PathBuf]) -> Vec<Scraped> {
    let until = Instant::now() + ANSWER_TIMEOUT;
    let (sender, answers) = channel();
    for (index, control) in controls.iter().enumerate() {
        let (sender, control) = (sender.clone(), control.clone());
        // It ends soon after its time, since each of its steps has a timeout. No thread, no answer.
        let ask = move || sender.send((index, ask(&control)));
        let _ = thread::Builder::new().name("ask".into()).spawn(ask);
    }
    drop(sender);
    let mut scraped: Vec<_> = controls
        .iter()
        .map(|control| Scraped { control: control.display().to_string(), report: None })
        .collect();
    while let Ok((index, report)) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
        scraped[index].report = report.ok();
    }
    scraped
}

fn ask(control: &Path) -> io::Result<Report> {
    let mut client = Client::connect_within(control, ANSWER_TIMEOUT)?;
    match client.ask(&Request::Stats { device: None })? {
        Reply::Ok(value) => Ok(serde_json::from_value(value)?),
        Reply::Error(error) | Reply::Waiting(error) => Err(io::Error::other(error)),
    }
}
