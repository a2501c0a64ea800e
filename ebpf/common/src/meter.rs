//! A limit on what passes, the same in the kernel and beside it.

/// By how many bits a price is finer than a nanosecond: at 100 Gbit/s a byte takes a twelfth of one.
const FINER: u32 = 20;

/// How far what passed may be ahead of its rate, in nanoseconds: what arrives at once, as TCP sends it, is not lost.
const BURST: u64 = 200_000_000;

/// Bytes per second that may pass, by the virtual scheduling algorithm of ITU-T I.371 Annex A: each packet moves a clock on by
/// the time that it takes at the rate, and a packet that finds the clock too far ahead is one too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meter {
    /// What a byte takes, in nanoseconds times 2^20; zero means no limit.
    pub price: u64,
    /// The clock, in nanoseconds as those that are given with packets.
    pub clock: u64,
}

impl Meter {
    /// A limit of so many Mbit/s; zero means none.
    pub const fn new(mbits: u32) -> Self {
        let price = match mbits {
            0 => 0,
            mbits => (8_000 << FINER) / mbits as u64,
        };
        Self { price, clock: 0 }
    }

    /// Whether a packet of so many bytes may pass, which it then does. What keeps a tunnel or a path alive may still where
    /// there is no room for data.
    #[inline(always)]
    pub const fn admit(&mut self, bytes: u64, is_data: bool, now: u64) -> bool {
        if self.price == 0 {
            return true;
        }
        let burst = if is_data { BURST } else { 2 * BURST };
        let clock = if self.clock > now { self.clock } else { now };
        let has_room = clock - now < burst;
        if has_room {
            self.clock = clock + ((bytes * self.price) >> FINER);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Returns how many bits pass in ten seconds of packets that come as fast as this.
    fn passed(mbits: u32, bytes: u64, pause: u64) -> u64 {
        let mut meter = Meter::new(mbits);
        let times = (SECOND..11 * SECOND).step_by(usize::try_from(pause).unwrap());
        times.filter(|&now| meter.admit(bytes, true, now)).count() as u64 * bytes * 8
    }

    #[test]
    fn ten_times_too_much_passes_at_the_rate() {
        for mbits in [1, 7, 100, 2_500] {
            let pause = 1_400 * 8_000 / u64::from(mbits) / 10;
            let (bits, expected) = (passed(mbits, 1_400, pause), 10 * u64::from(mbits) * 1_000_000);
            let (least, most) = (expected * 99 / 100, expected * 103 / 100);
            assert!((least..most).contains(&bits), "{bits} bits in ten seconds of {mbits} Mbit/s");
        }
    }

    #[test]
    fn nothing_is_lost_below_the_rate_or_without_one() {
        let pause = 1_400 * 8_000 / 10 + 1_000;
        assert_eq!(passed(10, 1_400, pause), (10 * SECOND).div_ceil(pause) * 1_400 * 8);
        assert_eq!(passed(0, 1_400, 100_000), 100_000 * 1_400 * 8);
    }

    #[test]
    fn what_keeps_a_path_alive_passes_where_data_is_too_much() {
        let mut meter = Meter::new(1);
        while meter.admit(1_400, true, SECOND) {}
        assert!(meter.admit(148, false, SECOND), "a handshake is in time");
        let more = (0..1_000_000).take_while(|_| meter.admit(148, false, SECOND)).count();
        assert!(more < 200, "and yet bounded: {more}");
    }

    /// Who was silent for an hour has saved no more than a burst.
    #[test]
    fn rest_is_not_saved_up() {
        let mut meter = Meter::new(1);
        let at_once =
            |meter: &mut Meter, now| (0..10_000).take_while(|_| meter.admit(1_000, true, now)).count();
        assert_eq!(at_once(&mut meter, SECOND), 25);
        assert_eq!(at_once(&mut meter, 3_600 * SECOND), 25);
    }
}
