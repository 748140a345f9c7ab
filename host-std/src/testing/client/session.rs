//! A session with a server: what QEMU's vhost-user devices do, in the order in which they do it (`vhost_dev_init`,
//! `vhost_user_blk_start`, `vhost_dev_start`, `vhost_virtqueue_start`).

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blk_core::memory::GuestMemory as _;
use blk_core::units::GuestAddr;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend as _, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::GuestMemoryBackend as _;

use super::connection::Connection;
use super::error::ClientError;
use super::notices::Changes;
use super::options::Options;
use super::queue::{Parts, Queue, QueueCounts, Span, after, page_up};
use super::slots::{REQUEST_MAX, RESPONSE_MAX, Slots};
use super::ticket::Ticket;
use crate::memory::{HostMemory as _, MappedMemory};

/// Where guest memory begins: not at 0, so that an offset taken for an address is found out.
const MEMORY_START: GuestAddr = GuestAddr(0x4000_0000);
/// A second region, which is shared only on demand.
const SPARE_BYTES: usize = 64 << 10;

/// A request to make available.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain<'a> {
    /// What the device reads first.
    pub request: &'a [u8],
    /// Bytes of the slot's buffer that the device reads, or writes.
    pub data: Data,
    /// Bytes of the answer.
    pub response: u32,
    /// Whether the answer comes before the data that the device writes (virtio-scsi), or after it (virtio-blk).
    pub response_first: bool,
}

/// Which way a request's data go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data {
    None,
    Out(u32),
    In(u32),
}

/// A request that came back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completed {
    pub ticket: Ticket,
    /// Bytes that the device says it has written, the answer's included.
    pub written: u32,
}

/// A vhost-user client with its memory and its rings, which outlive the connection.
#[derive(Debug)]
pub struct VhostUser {
    path: PathBuf,
    options: Options,
    memory: MappedMemory,
    lanes: Vec<Lane>,
    features: u64,
    in_flight: Option<InFlightRegion>,
    changes: Arc<Changes>,
    connection: Option<Connection>,
    sequence: u64,
}

/// A ring and the slots of its requests.
#[derive(Debug)]
struct Lane {
    queue: Queue,
    slots: Slots,
    /// The chain that is being made: kept, so that nothing is allocated for it.
    readable: Vec<Span>,
    writable: Vec<Span>,
}

#[derive(Debug)]
struct InFlightRegion {
    layout: [u64; 4],
    file: File,
}

impl InFlightRegion {
    fn message(&self) -> VhostUserInflight {
        let [size, offset, queues, queue_size] = self.layout;
        VhostUserInflight::new(size, offset, queues as u16, queue_size as u16)
    }
}

impl VhostUser {
    /// Connects, negotiates, shares memory and starts the rings. Tries to connect as long as `options.timeout` allows.
    ///
    /// # Errors
    /// [`ClientError`] if nobody listens, or the server refuses something.
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self, ClientError> {
        let path = path.as_ref().to_owned();
        let changes = Arc::new(Changes::default());
        let connection = Connection::open(&path, &options, &changes)?;
        let features = connection.offered() & options.features;
        let lane_bytes = lane_bytes(&options);
        let bytes = lane_bytes * u64::from(options.queues);
        let spare = after(MEMORY_START, page_up(bytes) + SPARE_BYTES as u64);
        let memory = MappedMemory::shared(&[(MEMORY_START, bytes as usize), (spare, SPARE_BYTES)])?;
        let lanes = (0..options.queues)
            .map(|index| {
                let start = after(MEMORY_START, lane_bytes * u64::from(index));
                Lane::new(&memory, start, &options, features, connection.as_fd())
            })
            .collect::<Result<_, _>>()?;
        let connection = Some(connection);
        let mut session = Self {
            path,
            options,
            memory,
            lanes,
            features,
            in_flight: None,
            changes,
            connection,
            sequence: 0,
        };
        session.start()?;
        Ok(session)
    }

    /// Leaves the server without a word, as a client does that is killed. Memory, rings and the in-flight region stay.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Connects once more, with the same memory, rings and in-flight region: each ring resumes at its used index, as
    /// QEMU's do. Requests under way complete as if nothing had happened.
    ///
    /// # Errors
    /// [`ClientError`] if nobody listens within the time, or the server is not what it was.
    pub fn reconnect(&mut self) -> Result<(), ClientError> {
        self.connection = None;
        let connection = Connection::open(&self.path, &self.options, &self.changes)?;
        if self.features & !connection.offered() != 0 {
            return Err(ClientError::NotOffered("the features that were negotiated before"));
        }
        for lane in &mut self.lanes {
            lane.queue.rewire(connection.as_fd())?;
        }
        self.connection = Some(connection);
        self.start()
    }

    /// Stops every ring, resets them, and starts again as a driver that was loaded anew.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses.
    pub fn restart_driver(&mut self) -> Result<(), ClientError> {
        for queue in 0..self.options.queues {
            self.stop_ring(queue)?;
        }
        for lane in &mut self.lanes {
            lane.queue.reset();
            lane.slots.reset();
        }
        self.start()
    }

    fn start(&mut self) -> Result<(), ClientError> {
        let config_bytes = self.options.config_bytes;
        if config_bytes != 0 && self.has_protocol(VhostUserProtocolFeatures::CONFIG) {
            self.config(0, config_bytes)?;
        }
        let features = self.features;
        let connection = self.connection.as_mut().ok_or(ClientError::Gone)?;
        let with_protocol = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        connection.message(|frontend| frontend.set_features(with_protocol))?;
        if connection.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            if self.in_flight.is_none() {
                let wanted = VhostUserInflight::new(0, 0, self.options.queues, self.options.size);
                let (message, file) = connection.message(|frontend| frontend.get_inflight_fd(&wanted))?;
                let (size, offset) = (message.mmap_size, message.mmap_offset);
                let layout = [size, offset, message.num_queues.into(), message.queue_size.into()];
                self.in_flight = Some(InFlightRegion { layout, file });
            }
            if let Some(region) = &self.in_flight {
                let (message, fd) = (region.message(), region.file.as_raw_fd());
                connection.message(|frontend| frontend.set_inflight_fd(&message, fd))?;
            }
        }
        self.share_memory(false)?;
        for queue in 0..self.options.queues {
            let base = self.lane(queue)?.queue.used_index();
            self.start_ring(queue, base)?;
        }
        Ok(())
    }

    /// Sends the memory table once more: with a region that no request uses, or without it. Rings go on meanwhile.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses.
    pub fn share_memory(&mut self, with_spare: bool) -> Result<(), ClientError> {
        let regions = self.regions(with_spare)?;
        self.message(|frontend| frontend.set_mem_table(&regions)).map(drop)
    }

    /// Adds or removes the region that no request uses, by a message of its own (CONFIGURE_MEM_SLOTS).
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses, or does not offer it.
    pub fn plug_spare(&mut self, plug: bool) -> Result<(), ClientError> {
        let regions = self.regions(true)?;
        let spare = regions.last().expect("there are two regions");
        self.message(|frontend| {
            if plug { frontend.add_mem_region(spare).map(drop) } else { frontend.remove_mem_region(spare) }
        })
    }

    fn regions(&self, with_spare: bool) -> Result<Vec<VhostUserMemoryRegionInfo>, ClientError> {
        let regions = self.memory.mapping().iter().take(1 + usize::from(with_spare));
        Ok(regions.map(VhostUserMemoryRegionInfo::from_guest_region).collect::<Result<_, _>>()?)
    }

    /// Sets a ring up from `base` on, enables it, and kicks it if the options say so.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses.
    pub fn start_ring(&mut self, queue: u16, base: u16) -> Result<(), ClientError> {
        let (size, first_kick) = (self.options.size, self.options.first_kick);
        let memory = self.memory.clone();
        let connection = self.connection.as_mut().ok_or(ClientError::Gone)?;
        let lane = self.lanes.get_mut(usize::from(queue)).ok_or(ClientError::Full)?;
        let parts = lane.queue.parts();
        let index = usize::from(queue);
        let addresses = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: user_address(&memory, parts.descriptors),
            used_ring_addr: user_address(&memory, parts.used),
            avail_ring_addr: user_address(&memory, parts.available),
            log_addr: None,
        };
        connection.message(|frontend| {
            frontend.set_vring_num(index, size)?;
            frontend.set_vring_base(index, base)?;
            frontend.set_vring_addr(index, &addresses)?;
            frontend.set_vring_kick(index, lane.queue.kick_fd())?;
            frontend.set_vring_call(index, lane.queue.call_fd())?;
            frontend.set_vring_enable(index, true)
        })?;
        if first_kick {
            lane.queue.kick_always()?;
        }
        Ok(())
    }

    /// Stops a ring (GET_VRING_BASE). Returns the available index at which the server would go on.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses.
    pub fn stop_ring(&mut self, queue: u16) -> Result<u16, ClientError> {
        Ok(self.message(|frontend| frontend.get_vring_base(usize::from(queue)))? as u16)
    }

    /// Sends messages, also those of a test's own.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses, or does not answer in time.
    pub fn message<R>(
        &mut self,
        message: impl FnOnce(&mut Frontend) -> Result<R, vhost::Error>,
    ) -> Result<R, ClientError> {
        self.connection.as_mut().ok_or(ClientError::Gone)?.message(message)
    }

    /// The features of the device that are in use.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The features that the server offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.connection.as_ref().map_or(0, Connection::offered)
    }

    /// Whether a protocol feature is in use.
    #[must_use]
    pub fn has_protocol(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.has(feature))
    }

    /// What was asked for.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The memory that is shared.
    #[must_use]
    pub fn memory(&self) -> &MappedMemory {
        &self.memory
    }

    /// The file of the in-flight region, once the server gave one.
    #[must_use]
    pub fn in_flight_file(&self) -> Option<&File> {
        self.in_flight.as_ref().map(|region| &region.file)
    }

    /// Tells the device of requests, whether it wants to be told or not.
    ///
    /// # Errors
    /// [`ClientError`] if the eventfd cannot be written.
    pub fn kick_always(&mut self, queue: u16) -> Result<(), ClientError> {
        self.lane_mut(queue)?.queue.kick_always()
    }

    /// Copies the in-flight region into a file of the client's own, unsealed, and starts again with that. Returns the file.
    ///
    /// # Errors
    /// [`ClientError`] if the server gave no region, or refuses this one.
    pub fn replace_in_flight_file(&mut self) -> Result<File, ClientError> {
        let region = self.in_flight.as_mut().ok_or(ClientError::NotOffered("an in-flight region"))?;
        let copy = || -> std::io::Result<[File; 2]> {
            let copy = File::from(rustix::fs::memfd_create("in-flight", rustix::fs::MemfdFlags::CLOEXEC)?);
            std::io::copy(&mut &region.file, &mut &copy)?;
            Ok([copy.try_clone()?, copy])
        };
        let [kept, copy] = copy().map_err(ClientError::system("cannot copy the in-flight region"))?;
        region.file = kept;
        self.reconnect()?;
        Ok(copy)
    }

    /// What happened on a queue so far.
    #[must_use]
    pub fn counts(&self, queue: u16) -> QueueCounts {
        self.lanes.get(usize::from(queue)).map(|lane| lane.queue.counts()).unwrap_or_default()
    }

    /// Requests under way on a queue.
    #[must_use]
    pub fn in_flight(&self, queue: u16) -> usize {
        self.lanes.get(usize::from(queue)).map_or(0, |lane| lane.queue.in_flight())
    }

    /// Chains made available so far, as the ring counts them: modulo 2^16.
    #[must_use]
    pub fn available_index(&self, queue: u16) -> u16 {
        self.lanes.get(usize::from(queue)).map_or(0, |lane| lane.queue.available_index())
    }

    /// Reads the configuration space.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses, or does not offer CONFIG.
    pub fn config(&mut self, offset: u32, bytes: u32) -> Result<Vec<u8>, ClientError> {
        let blank = vec![0; bytes as usize];
        let flags = VhostUserConfigFlags::empty();
        Ok(self.message(|frontend| frontend.get_config(offset, bytes, flags, &blank))?.1)
    }

    /// Writes to the configuration space.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses, or does not offer CONFIG.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), ClientError> {
        self.message(|frontend| frontend.set_config(offset, VhostUserConfigFlags::empty(), bytes))
    }

    /// How often the server said that the configuration has changed.
    #[must_use]
    pub fn config_changes(&self) -> u64 {
        self.changes.count()
    }

    /// Waits until the server has said so more than `known` times. Returns how often it has.
    #[must_use]
    pub fn wait_for_config_change(&self, known: u64, timeout: Duration) -> u64 {
        self.changes.wait(known, timeout)
    }

    fn lane(&self, queue: u16) -> Result<&Lane, ClientError> {
        self.lanes.get(usize::from(queue)).ok_or(ClientError::Full)
    }

    fn lane_mut(&mut self, queue: u16) -> Result<&mut Lane, ClientError> {
        self.lanes.get_mut(usize::from(queue)).ok_or(ClientError::Full)
    }

    /// Puts data into the slot that the next request of a queue will have.
    pub(super) fn fill_next(&mut self, queue: u16, data: &[u8]) -> Result<(), ClientError> {
        let lane = self.lane(queue)?;
        let slot = lane.slots.next_free().filter(|_| lane.slots.fits(data.len())).ok_or(ClientError::Full)?;
        self.memory.write(lane.slots.buffer(slot), data).expect("slots are memory");
        Ok(())
    }

    /// The number of the next request.
    pub(super) const fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// How much data the last request of a slot had.
    pub(super) fn data_bytes(&self, ticket: Ticket) -> u32 {
        self.lanes.get(usize::from(ticket.queue)).map_or(0, |lane| lane.slots.data(ticket.slot))
    }

    /// Makes a request available.
    pub(super) fn submit(&mut self, queue: u16, chain: &Chain<'_>) -> Result<Ticket, ClientError> {
        let sequence = self.sequence;
        let ticket = self.lane_mut(queue)?.submit(queue, sequence, chain)?;
        self.sequence += 1;
        Ok(ticket)
    }

    /// Tells the device of the requests that were made available on a queue, if it wants to be told. [`Blk::wait`] and the
    /// like do so themselves.
    ///
    /// [`Blk::wait`]: super::Blk::wait
    ///
    /// # Errors
    /// [`ClientError`] if the eventfd cannot be written.
    pub fn kick(&mut self, queue: u16) -> Result<bool, ClientError> {
        self.lane_mut(queue)?.queue.kick()
    }

    /// Takes a request that came back, if there is one.
    pub(super) fn poll(&mut self, queue: u16) -> Result<Option<Completed>, ClientError> {
        let lane = self.lane_mut(queue)?;
        Ok(lane
            .queue
            .poll()?
            .map(|used| Completed { ticket: lane.slots.give_back(used.head), written: used.len }))
    }

    /// Kicks, and sleeps until a request came back.
    pub(super) fn wait(&mut self, queue: u16) -> Result<Completed, ClientError> {
        let timeout = self.options.timeout;
        let lane = self.lane_mut(queue)?;
        let used = lane.queue.wait(timeout)?;
        Ok(Completed { ticket: lane.slots.give_back(used.head), written: used.len })
    }

    /// What a request was answered. Valid until the next request is submitted to the queue.
    pub(super) fn response(&self, ticket: Ticket, into: &mut [u8]) {
        let slots = &self.lanes[usize::from(ticket.queue)].slots;
        self.memory.read(slots.response(ticket.slot), into).expect("slots are memory");
    }

    /// A request's data, from the front. Valid until the next request is submitted to the queue.
    pub(super) fn data(&self, ticket: Ticket, into: &mut [u8]) {
        let slots = &self.lanes[usize::from(ticket.queue)].slots;
        assert!(into.len() <= slots.data(ticket.slot) as usize, "more data than the request had");
        self.memory.read(slots.buffer(ticket.slot), into).expect("slots are memory");
    }
}

fn lane_bytes(options: &Options) -> u64 {
    Parts::bytes(options.size)
        + page_up(Slots::bytes(options.size, options.transfer_bytes, options.segment_bytes))
}

fn user_address(memory: &MappedMemory, addr: GuestAddr) -> u64 {
    memory.host_range(addr, 1).expect("the ring is memory").start.as_ptr() as u64
}

impl Lane {
    fn new(
        memory: &MappedMemory,
        start: GuestAddr,
        options: &Options,
        features: u64,
        socket: BorrowedFd<'_>,
    ) -> Result<Self, ClientError> {
        let parts = Parts::at(start, options.size);
        let slots = after(start, Parts::bytes(options.size));
        Ok(Self {
            queue: Queue::new(memory.clone(), parts, options, features, socket)?,
            slots: Slots::new(slots, options.size, options.transfer_bytes, options.segment_bytes),
            readable: Vec::new(),
            writable: Vec::new(),
        })
    }

    fn submit(&mut self, queue: u16, sequence: u64, chain: &Chain<'_>) -> Result<Ticket, ClientError> {
        let slot = self.slots.next_free().ok_or(ClientError::Full)?;
        let bytes = match chain.data {
            Data::None => 0,
            Data::Out(bytes) | Data::In(bytes) => bytes,
        };
        let fits = chain.request.len() <= REQUEST_MAX as usize && self.slots.fits(bytes as usize);
        // An answer that was never written is not one.
        let blank = [0xff; RESPONSE_MAX as usize];
        let blank = blank.get(..chain.response as usize).filter(|_| fits).ok_or(ClientError::Full)?;
        let memory = self.queue.memory();
        memory.write(self.slots.request(slot), chain.request).expect("slots are memory");
        memory.write(self.slots.response(slot), blank).expect("slots are memory");
        self.lay_out(slot, chain);
        let head = self.queue.submit(self.slots.table(slot), &self.readable, &self.writable)?;
        let ticket = Ticket { queue, slot, sequence };
        self.slots.take(head, ticket, bytes);
        Ok(ticket)
    }

    /// Makes `readable` and `writable` of a request.
    fn lay_out(&mut self, slot: u16, chain: &Chain<'_>) {
        self.readable.clear();
        self.writable.clear();
        if !chain.request.is_empty() {
            self.readable.push(Span { addr: self.slots.request(slot), len: chain.request.len() as u32 });
        }
        let response = Span { addr: self.slots.response(slot), len: chain.response };
        if chain.response_first {
            self.writable.push(response);
        }
        match chain.data {
            Data::None => {}
            Data::Out(bytes) => self.readable.extend(self.slots.spans(slot, bytes)),
            Data::In(bytes) => self.writable.extend(self.slots.spans(slot, bytes)),
        }
        if !chain.response_first {
            self.writable.push(response);
        }
    }
}
