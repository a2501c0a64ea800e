//! How many bytes a second go from one host to another.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use wgmesh_lab::Host;

/// Bytes handed to the kernel at once.
const CHUNK: usize = 64 * 1024;

/// How long a connection may take to come about, and to bring its next byte.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends over one TCP connection for so long, and returns the bytes a second that arrived.
pub(super) fn stream(from: &Host, to: &Host, address: IpAddr, length: Duration) -> f64 {
    let listening = to.namespace().run(move || TcpListener::bind((address, 0)));
    let listener = listening.expect("the address is the host's");
    let target = listener.local_addr().expect("it is bound");
    let receiver = std::thread::spawn(move || receive(&listener));
    let connected = from.namespace().run(move || TcpStream::connect_timeout(&target, PATIENCE));
    let mut sender = connected.expect("the host can be reached");
    let chunk = vec![7; CHUNK];
    let begin = Instant::now();
    while begin.elapsed() < length {
        sender.write_all(&chunk).expect("the connection lasts");
    }
    drop(sender);
    receiver.join().expect("it counts to the end")
}

fn receive(listener: &TcpListener) -> f64 {
    let (mut connection, _) = listener.accept().expect("somebody connects");
    connection.set_read_timeout(Some(PATIENCE)).expect("it is no zero");
    let mut buffer = vec![0; CHUNK];
    let begin = Instant::now();
    let mut total = 0;
    loop {
        match connection.read(&mut buffer).expect("the connection lasts") {
            0 => return total as f64 / begin.elapsed().as_secs_f64(),
            count => total += count,
        }
    }
}

/// Prints the rates of several ways to go, in the order of the runs, and the ratios of the others to the first: the
/// median over runs that stood beside each other.
pub(super) fn print_rates(names: &[&str], runs: &[Vec<f64>]) {
    for (at, name) in names.iter().enumerate() {
        let column = |value: &dyn Fn(&Vec<f64>) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(value).collect();
            values.sort_unstable_by(f64::total_cmp);
            (values[0], values[values.len() / 2], values[values.len() - 1])
        };
        let (least, median, most) = column(&|run| run[at] * 8.0 / 1e6);
        let (_, ratio, _) = column(&|run| run[at] / run[0]);
        println!("{name:<34} {median:>8.1} Mbit/s ({least:.1} to {most:.1}), {ratio:.3} of the first");
    }
}
