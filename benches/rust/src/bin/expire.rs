//! Ten thousand receives on sixty-four sockets, none of which is ever fed: how late the engine
//! tells of their deadlines, spread over two seconds. One line of JSON for `files.py`.
//!
//! ```text
//! expire [thread|loop] [TICK_MS]
//! ```

use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_core::{
    clock::Mono,
    engine::io::{self, DriverSetting, IoSettings},
    error::ErrorKind,
    io::File,
    ioloop::{Answered, Ask, Handle, Settings, Sink},
};

const RECEIVES: u64 = 10_000;
const SOCKETS: usize = 64;
const SPREAD: Duration = Duration::from_secs(2);
/// So that all of them wait before the first expires.
const AHEAD: Duration = Duration::from_millis(500);

/// Notes when each was answered.
struct Times {
    handle: Handle,
    seen: Mutex<Vec<(u64, Mono)>>,
}

impl Sink for Times {
    fn answer(&self, answered: Answered) {
        let now = self.handle.now();
        let kind = answered.result.map(drop).map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::Timeout));
        self.seen.lock().unwrap().push((answered.tag, now));
    }
}

fn main() {
    let options: Vec<String> = std::env::args().collect();
    let is_loop = options.get(1).is_some_and(|driver| driver == "loop");
    let tick = options.get(2).map_or(5, |tick| tick.parse().unwrap());
    let engine = io::open(&IoSettings {
        numbers: Settings {
            size: 16_384,
            tick: Duration::from_millis(tick),
            ..Settings::default()
        },
        driver: if is_loop {
            DriverSetting::Loop
        } else {
            DriverSetting::Thread
        },
        ..IoSettings::default()
    })
    .unwrap();
    let pairs: Vec<_> = (0..SOCKETS).map(|_| UnixStream::pair().unwrap()).collect();
    let times = Arc::new(Times {
        handle: engine.handle().clone(),
        seen: Mutex::default(),
    });
    let began = engine.handle().now();
    // Numbers that repeat in every run, spread evenly.
    let due = |tag: u64| {
        let share = (tag * 7919 % RECEIVES) as f64 / RECEIVES as f64;
        began.after(AHEAD + SPREAD.mul_f64(share))
    };
    for tag in 0..RECEIVES {
        let socket = File::duplicate(pairs[tag as usize % SOCKETS].0.as_raw_fd()).unwrap();
        let ask = Ask::Recv {
            socket,
            length: 1,
            exact: true,
        };
        let sink: Arc<dyn Sink> = times.clone();
        engine
            .handle()
            .submit(ask, Some(due(tag)), sink, tag)
            .unwrap();
    }
    let all_seen = || times.seen.lock().unwrap().len() as u64 == RECEIVES;
    match engine.turnable() {
        Some(turnable) => turnable.turn_while(|| !all_seen()),
        None => {
            while !all_seen() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let seen = times.seen.lock().unwrap();
    let early = seen.iter().filter(|(tag, at)| *at < due(*tag)).count();
    let mut late: Vec<f64> = seen
        .iter()
        .map(|(tag, at)| at.since(due(*tag)).as_secs_f64())
        .collect();
    late.sort_by(f64::total_cmp);
    let share = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
    println!(
        "{{\"early\": {early}, \"late_p50_s\": {}, \"late_p99_s\": {}, \"late_max_s\": {}}}",
        share(0.5),
        share(0.99),
        share(1.0)
    );
}
