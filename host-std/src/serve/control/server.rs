//! The server's side of the control socket: a thread for each connection.

use std::io::{BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::connections::{Activity, Connections, Place};
use super::waiting::with_patience;
use super::{CONNECTIONS_MAX, LineError, Reply, Report, Request, read_line};
use crate::mutex::lock;
use crate::serve::confined::Confined;
use crate::serve::device::{Device, Refusal};
use crate::serve::events::{Bus, Event};
use crate::serve::log;
use crate::serve::same_file;
use crate::serve::spec::ImageSpec;

/// How long a client may leave an answer unread before it is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the control socket acts on.
pub(in crate::serve) struct Control {
    pub(in crate::serve) devices: Vec<Arc<Device>>,
    pub(in crate::serve) bus: Arc<Bus>,
    pub(in crate::serve) since: Instant,
    pub(in crate::serve) confined: Confined,
}

impl Control {
    /// Answers connections, for as long as the process lives.
    pub(in crate::serve) fn listen(self: Arc<Self>, listener: &UnixListener) {
        let open = Arc::new(Connections::default());
        for id in 0.. {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: later there may be some.
                    tracing::warn!(%error, "the control socket cannot accept");
                    thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            let control = Arc::clone(&self);
            let Some(place) = open.take(id, &stream) else {
                refuse(stream);
                continue;
            };
            let serve = move || control.converse(stream, id, &place);
            if let Err(error) = thread::Builder::new().name("control".into()).spawn(serve) {
                tracing::warn!(%error, "the control socket cannot serve a connection");
            }
        }
    }

    fn converse(&self, stream: UnixStream, id: u64, place: &Place) {
        let peers = stream.set_write_timeout(Some(WRITE_TIMEOUT)).and_then(|()| stream.try_clone());
        let Ok(writer) = peers else { return };
        let writer = Arc::new(Mutex::new(writer));
        let mut from = BufReader::new(stream);
        loop {
            place.begin(Activity::Idle);
            let line = match read_line(&mut from) {
                Ok(Some(line)) => line,
                Ok(None) | Err(LineError::Io(_)) => break,
                Err(error) => {
                    send(&writer, &Reply::Error(error.to_string()));
                    break;
                }
            };
            place.begin(Activity::Working);
            let reply = match serde_json::from_str(&line) {
                Ok(Request::Events {}) => {
                    // Once is enough.
                    self.bus.unsubscribe(id);
                    let events = self.bus.subscribe(id);
                    place.subscribed();
                    if !send(&writer, &Reply::Ok(json!({}))) {
                        break;
                    }
                    let writer = Arc::clone(&writer);
                    // Without a thread the receiver is dropped, and nothing comes.
                    let _ =
                        thread::Builder::new().name("events".into()).spawn(move || forward(&events, &writer));
                    continue;
                }
                Ok(request) => self.answer_patiently(request, &writer).map_or_else(Reply::Error, Reply::Ok),
                Err(error) => Reply::Error(format!("not a request: {error}")),
            };
            place.begin(Activity::Answering);
            if !send(&writer, &reply) {
                break;
            }
        }
        self.bus.unsubscribe(id);
        // The forwarder may still have a copy of the socket.
        let _ = from.get_ref().shutdown(Shutdown::Both);
    }

    /// Answers, and says every second what it waits for. What is only looked at waits for nothing.
    fn answer_patiently(&self, request: Request, writer: &Mutex<UnixStream>) -> Result<Value, Refusal> {
        let device = match &request {
            Request::Pause { device }
            | Request::Resume { device }
            | Request::Drain { device }
            | Request::Resize { device, .. }
            | Request::Mark { device, .. }
            | Request::Hotplug { device, .. }
            | Request::Unplug { device, .. }
            | Request::Disconnect { device } => self.device(device.as_deref())?,
            Request::Stats { .. } | Request::Throttle { .. } | Request::Events {} => {
                return self.answer(request);
            }
        };
        let say = || {
            // A client that has gone is found when it is answered.
            send(writer, &Reply::Waiting(format!("{}: {}", device.name, device.waits_for())));
        };
        with_patience(|| self.answer(request), say).map_err(|error| format!("cannot do it: {error}"))?
    }

    fn answer(&self, request: Request) -> Result<Value, Refusal> {
        match request {
            Request::Stats { device } => self.report(device.as_deref()),
            Request::Pause { device } => {
                self.device(device.as_deref())?.pause();
                Ok(json!({}))
            }
            Request::Resume { device } => Ok(json!({ "retried": self.device(device.as_deref())?.resume() })),
            Request::Drain { device } => self.device(device.as_deref())?.drain().map(|()| json!({})),
            Request::Resize { device, image, bytes, grow } => {
                let device = self.device(device.as_deref())?;
                let bytes = match (bytes, grow) {
                    (Some(_), Some(_)) => return Err("both bytes and grow; give one".into()),
                    (None, Some(grow)) => {
                        let now = device.bytes(image)?;
                        Some(now.checked_add(grow).ok_or("that is more than 2^64 bytes")?)
                    }
                    (bytes, None) => bytes,
                };
                device.resize(image, bytes).map(|bytes| json!({ "bytes": bytes }))
            }
            Request::Throttle { device, image, limits } => {
                let limits = self.device(device.as_deref())?.throttle(image, &limits)?;
                serde_json::to_value(limits).map_err(|error| error.to_string())
            }
            Request::Mark { device, text } => {
                self.device(device.as_deref())?.mark(&text).map(|position| json!({ "position": position }))
            }
            Request::Hotplug { device, image } => {
                let spec = ImageSpec::parse("hotplug", &image).map_err(|error| error.to_string())?;
                let present: Vec<_> = self.devices.iter().flat_map(|device| device.image_configs()).collect();
                same_file::check_plugged(&present, &spec.image).map_err(|error| error.to_string())?;
                let plugged = self.device(device.as_deref())?.hotplug(&spec.image);
                let lun = plugged.map_err(|refusal| self.confined.explain(&spec.image, refusal))?;
                Ok(json!({ "lun": lun }))
            }
            Request::Unplug { device, lun } => {
                self.device(device.as_deref())?.unplug(lun).map(|()| json!({}))
            }
            Request::Disconnect { device } => {
                self.device(device.as_deref())?.disconnect();
                Ok(json!({}))
            }
            // Answered by the connection.
            Request::Events {} => Ok(json!({})),
        }
    }

    fn report(&self, device: Option<&str>) -> Result<Value, Refusal> {
        let devices = match device {
            Some(name) => vec![self.device(Some(name))?.stats()],
            None => self.devices.iter().map(|device| device.stats()).collect(),
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (uptime_seconds, log_lines_lost) = (self.since.elapsed().as_secs(), log::lines_lost());
        let sandbox = self.confined.to_string();
        let report = Report { version, uptime_seconds, sandbox, log_lines_lost, devices };
        serde_json::to_value(report).map_err(|error| error.to_string())
    }

    fn device(&self, name: Option<&str>) -> Result<&Device, Refusal> {
        let found = match (name, self.devices.as_slice()) {
            (None, [device]) => Some(device),
            (Some(name), devices) => devices.iter().find(|device| device.name == name),
            (None, _) => None,
        };
        found.map(AsRef::as_ref).ok_or_else(|| {
            let names: Vec<_> = self.devices.iter().map(|device| device.name.as_str()).collect();
            format!("name one of the devices: {}", names.join(", "))
        })
    }
}

fn refuse(stream: UnixStream) {
    let error =
        format!("there are {CONNECTIONS_MAX} connections already, and all wait for an answer; close one");
    // A line of this size fits in the socket's buffer: it does not wait.
    send(&Mutex::new(stream), &Reply::Error(error));
}

fn forward(events: &Receiver<Event>, writer: &Mutex<UnixStream>) {
    while let Ok(event) = events.recv() {
        if !send(writer, &event) {
            return;
        }
    }
}

/// Returns whether the client took it.
fn send(writer: &Mutex<UnixStream>, what: &impl Serialize) -> bool {
    let Ok(mut line) = serde_json::to_vec(what) else { return false };
    line.push(b'\n');
    lock(writer).write_all(&line).is_ok()
}
