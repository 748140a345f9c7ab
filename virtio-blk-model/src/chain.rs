//! A request's buffers, sorted: header, data, status, however the driver cut them (VIRTIO 1.3, 2.7.4.1).

use blk_core::memory::GuestMemory;
use blk_core::op::Segment;
use blk_core::units::GuestAddr;
use blk_core::virtq::Buffer;
use heapless::Vec;

use crate::wire::RequestHeader;

/// Most data segments in a request.
pub const SEGMENTS_MAX: usize = 128;

const HEADER_BYTES: usize = size_of::<RequestHeader>();

/// The data segments of a request, and the status byte behind them. On the stack, where it is never initialised as a whole.
pub(crate) type Segments = Vec<Segment, { SEGMENTS_MAX + 1 }>;

/// The buffers of one chain. Descriptors and the header are copied once; the data stays where it is.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    header: [u8; HEADER_BYTES],
    header_len: usize,
    /// Readable data, then writable data.
    segments: &'a mut Segments,
    /// How many of them are readable.
    readable: usize,
    readable_bytes: u64,
    writable_bytes: u64,
    /// More data segments than fit, or a header that is not memory.
    unusable: bool,
}

impl<'a> Chain<'a> {
    /// An empty chain, with empty `segments` to put its data into.
    #[inline]
    pub(crate) const fn new(segments: &'a mut Segments) -> Self {
        Self {
            header: [0; HEADER_BYTES],
            header_len: 0,
            segments,
            readable: 0,
            readable_bytes: 0,
            writable_bytes: 0,
            unusable: false,
        }
    }

    /// Takes the next buffer. Readable ones come before writable ones: the ring has seen to that.
    #[inline(always)]
    pub(crate) fn add<M: GuestMemory + ?Sized>(&mut self, memory: &M, buffer: Buffer) {
        let Buffer { addr, len, writable } = buffer;
        if writable {
            self.push(addr, len);
            self.writable_bytes = self.writable_bytes.wrapping_add(u64::from(len));
        } else if self.header_len < HEADER_BYTES {
            self.add_to_header(memory, addr, len);
        } else {
            self.push_readable(addr, len);
        }
    }

    /// Cuts off the status byte, the last one that is writable, and returns where it is. `None`: there is nothing writable, and so
    /// no way to answer.
    #[inline(always)]
    pub(crate) fn finish(&mut self) -> Option<GuestAddr> {
        if self.writable_bytes == 0 {
            return None;
        }
        self.writable_bytes = self.writable_bytes.wrapping_sub(1);
        let Segment::Guest { addr, len } = self.segments.last_mut()? else { return None };
        *len = len.wrapping_sub(1);
        let (addr, len) = (*addr, *len);
        if len == 0 {
            self.segments.pop();
        }
        self.unusable |= self.segments.len() > SEGMENTS_MAX;
        // The ring has checked that the buffer does not wrap.
        Some(GuestAddr(addr.0.wrapping_add(u64::from(len))))
    }

    /// The header. `None` if it is too short or not memory, or if there are more segments than the device takes.
    #[inline]
    pub(crate) fn header(&self) -> Option<RequestHeader> {
        let whole = self.header_len == HEADER_BYTES && !self.unusable;
        whole.then(|| zerocopy::transmute!(self.header))
    }

    /// The segments behind the header, for the device to read, and their bytes.
    #[inline]
    pub(crate) fn readable(&self) -> (&[Segment], u64) {
        (self.segments.get(..self.readable).unwrap_or_default(), self.readable_bytes)
    }

    /// The segments before the status byte, for the device to write, and their bytes.
    #[inline]
    pub(crate) fn writable(&self) -> (&[Segment], u64) {
        (self.segments.get(self.readable..).unwrap_or_default(), self.writable_bytes)
    }

    /// Copies the header, of which this buffer has some; nearly always all, and nothing else.
    #[inline(always)]
    fn add_to_header<M: GuestMemory + ?Sized>(&mut self, memory: &M, addr: GuestAddr, len: u32) {
        if self.header_len == 0 && len as usize == HEADER_BYTES {
            self.unusable |= memory.read(addr, &mut self.header).is_err();
            self.header_len = HEADER_BYTES;
        } else {
            self.add_piece_of_header(memory, addr, len);
        }
    }

    /// A header in pieces, or with data behind it.
    #[cold]
    fn add_piece_of_header<M: GuestMemory + ?Sized>(&mut self, memory: &M, addr: GuestAddr, len: u32) {
        let Some(rest) = self.header.get_mut(self.header_len..) else { return };
        let take = u32::try_from(rest.len()).unwrap_or(0).min(len);
        let Some(into) = rest.get_mut(..take as usize) else { return };
        self.unusable |= memory.read(addr, into).is_err();
        self.header_len = self.header_len.saturating_add(take as usize);
        if len > take {
            // The ring has checked that the buffer does not wrap.
            self.push_readable(GuestAddr(addr.0.wrapping_add(u64::from(take))), len.wrapping_sub(take));
        }
    }

    #[inline]
    fn push_readable(&mut self, addr: GuestAddr, len: u32) {
        self.push(addr, len);
        self.readable = self.segments.len();
        self.readable_bytes = self.readable_bytes.wrapping_add(u64::from(len));
    }

    #[inline]
    fn push(&mut self, addr: GuestAddr, len: u32) {
        if let Err(segment) = self.segments.push(Segment::Guest { addr, len }) {
            self.overflow(segment);
        }
    }

    /// There are more segments than the device takes. The last one is kept, since it may be where the status byte is.
    #[cold]
    fn overflow(&mut self, segment: Segment) {
        self.unusable = true;
        if let Some(last) = self.segments.last_mut() {
            *last = segment;
        }
    }
}

/// Copies `into.len()` bytes of guest segments. `None` if they are fewer, or not memory.
pub(crate) fn copy_out<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    into: &mut [u8],
) -> Option<()> {
    let mut at: usize = 0;
    for segment in segments {
        let Segment::Guest { addr, len } = *segment else { return None };
        let rest = into.get_mut(at..)?;
        let take = rest.len().min(usize::try_from(len).ok()?);
        memory.read(addr, rest.get_mut(..take)?).ok()?;
        at = at.checked_add(take)?;
    }
    (at == into.len()).then_some(())
}

/// Copies `bytes` into guest segments, as many as fit, and returns how many that were. `None` if they are not memory.
pub(crate) fn copy_in<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    bytes: &[u8],
) -> Option<u32> {
    let mut at: usize = 0;
    for segment in segments {
        let Segment::Guest { addr, len } = *segment else { return None };
        let rest = bytes.get(at..)?;
        let take = rest.len().min(usize::try_from(len).ok()?);
        memory.write(addr, rest.get(..take)?).ok()?;
        at = at.checked_add(take)?;
    }
    u32::try_from(at).ok()
}
