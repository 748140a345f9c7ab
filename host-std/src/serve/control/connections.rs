//! The connections of operators: so many at most, and none keeps another out by doing nothing.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::CONNECTIONS_MAX;
use crate::mutex::lock;

/// A client that takes no answer for so long may be let go for another.
const SLOW: Duration = Duration::from_secs(1);

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Vec<Open>>);

#[derive(Debug)]
struct Open {
    id: u64,
    stream: UnixStream,
    activity: Activity,
    since: Instant,
    subscribed: bool,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// The client says nothing, or has not finished its line.
    Idle,
    /// A command is done.
    Working,
    /// The client has to take its answer.
    Answering,
}

/// A connection's place. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    all: Arc<Connections>,
    id: u64,
}

impl Connections {
    /// Takes a place for a connection. If all are taken, the one that has been idle for longest is let go; then one that takes
    /// no answer; then one that waits for events. `None` if all work.
    pub(super) fn take(self: &Arc<Self>, id: u64, stream: &UnixStream) -> Option<Place> {
        let stream = stream.try_clone().ok()?;
        let mut all = self.lock();
        if all.len() >= CONNECTIONS_MAX {
            let now = Instant::now();
            let rank = |open: &Open| match (open.activity, open.subscribed) {
                (Activity::Idle, subscribed) => Some(if subscribed { 2 } else { 0 }),
                (Activity::Answering, _) if now.duration_since(open.since) >= SLOW => Some(1),
                _ => None,
            };
            let ranked =
                all.iter().enumerate().filter_map(|(index, open)| Some(((rank(open)?, open.since), index)));
            let (_, index) = ranked.min()?;
            let open = all.swap_remove(index);
            tracing::warn!("an idle connection to the control socket is let go: another needs its place");
            // Its thread sees the end of the stream.
            let _ = open.stream.shutdown(Shutdown::Both);
        }
        let since = Instant::now();
        all.push(Open { id, stream, activity: Activity::Idle, since, subscribed: false });
        Some(Place { all: Arc::clone(self), id })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        lock(&self.0)
    }
}

impl Place {
    /// The connection does something else from now on.
    pub(super) fn begin(&self, activity: Activity) {
        self.change(|open| (open.activity, open.since) = (activity, Instant::now()));
    }

    /// The connection waits for events.
    pub(super) fn subscribed(&self) {
        self.change(|open| open.subscribed = true);
    }

    fn change(&self, change: impl FnOnce(&mut Open)) {
        // Not there if it was let go.
        self.all.lock().iter_mut().find(|open| open.id == self.id).map(change);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().retain(|open| open.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_oldest_idle_connection_makes_room_and_one_that_works_does_not() {
        let all = Arc::new(Connections::default());
        let mut peers = Vec::new();
        let mut connect = |id| {
            let (ours, mut peer) = UnixStream::pair().unwrap();
            peer.set_nonblocking(true).unwrap();
            let place = all.take(id, &ours);
            let mut is_open = move || peer.read(&mut [0]).is_err();
            assert!(is_open());
            peers.push(is_open);
            place
        };
        let mut places: Vec<_> = (0..CONNECTIONS_MAX as u64).map(|id| connect(id).unwrap()).collect();
        places.iter().for_each(|place| place.begin(Activity::Working));
        assert!(connect(100).is_none());
        places[5].begin(Activity::Idle);
        places[3].begin(Activity::Idle);
        places[2].subscribed();
        places[2].begin(Activity::Idle);
        for gone in [5, 3, 2] {
            let place = connect(200 + gone).unwrap();
            place.begin(Activity::Working);
            places.push(place);
        }
        assert!(connect(300).is_none());
        let open: Vec<_> = peers.iter_mut().map(|is_open| is_open()).collect();
        for (index, open) in open.iter().take(CONNECTIONS_MAX).enumerate() {
            assert_eq!(*open, ![5, 3, 2].contains(&index), "{index}");
        }
    }
}
