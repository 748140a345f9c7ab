//! Commands to a queue group's thread.

use std::sync::mpsc::Sender;

use blk_core::virtq::{RingFeatures, RingPosition, RingSetup};

use crate::memory::MappedMemory;
use crate::server::client_fd::ClientFd;
use crate::server::virtio::{Negotiated, Unit};
use crate::server::vring::InflightRecorder;

/// What a thread is told. Where there is a `Sender`, the answer comes once it is done.
pub(in crate::server) enum Command {
    /// The client's memory.
    Memory(MappedMemory, Sender<()>),
    /// What was negotiated.
    Negotiated(Negotiated, Sender<()>),
    /// Starts a ring.
    Start { ring: usize, start: Box<VringSetup>, started: Sender<Result<(), String>> },
    /// Stops a ring: what is in flight completes, then the next available index is the answer.
    Stop { ring: usize, stopped: Sender<u16> },
    /// Lets a ring take requests, or not; then the answer comes when nothing is in flight.
    Enable { ring: usize, enable: bool, done: Sender<()> },
    /// Where the client tells of requests, from now on.
    Kick { ring: usize, kick: Option<ClientFd>, done: Sender<Result<(), String>> },
    /// Where to say that there are used buffers.
    Call { ring: usize, call: Option<ClientFd> },
    /// Where to say that the ring is broken.
    Err { ring: usize, err: Option<ClientFd> },
    /// Takes no requests from now on, for one reason more, or one fewer.
    Hold { hold: bool, done: Sender<()> },
    /// Answers when nothing is in flight.
    Drain(Sender<()>),
    /// Flushes the images, while nothing is in flight, and tells whether that went well.
    Flush(Sender<bool>),
    /// Resets the device; its rings are stopped.
    Reset(Sender<()>),
    /// The driver writes into the configuration space.
    Config { offset: usize, bytes: Vec<u8> },
    /// What the guest had set in each unit with a server before this one.
    Resume(Vec<Option<u8>>),
    /// Adds a unit, and tells its place.
    Plug(Box<Unit>, Sender<Result<usize, &'static str>>),
    /// Takes a unit away, and tells the place that it had.
    Unplug { target: u8, lun: u16, done: Sender<Option<usize>> },
    /// Ends the thread, whatever is in flight.
    End,
}

/// A ring as the client set it up.
pub(in crate::server) struct VringSetup {
    pub(in crate::server) setup: RingSetup,
    pub(in crate::server) features: RingFeatures,
    pub(in crate::server) position: RingPosition,
    pub(in crate::server) log: InflightRecorder,
    /// `None`: it is to be polled.
    pub(in crate::server) kick: Option<ClientFd>,
}
