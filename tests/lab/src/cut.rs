//! Paths that die without a word: packets vanish on their way in, and no link goes down.

use crate::host::Host;

/// The name of the table that makes a cut.
const TABLE: &str = "cut";

/// Which packets between two hosts vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All, in both directions.
    Both,
    /// All that the first sends.
    There,
    /// All that the second sends.
    Back,
    /// Those of more than 1,280 bytes, in both directions.
    Large,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Both, Self::There, Self::Back, Self::Large];

    /// Returns what to call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Both => "both directions",
            Self::There => "one direction, there",
            Self::Back => "one direction, back",
            Self::Large => "only large packets",
        }
    }

    /// Begins it between two hosts, on the links with these names; `only` narrows it down in nft's words, for what comes
    /// in at the first and at the second.
    pub fn begin(self, hosts: [&Host; 2], links: [&str; 2], only: [&str; 2]) {
        self.begin_as(TABLE, hosts, links, only);
    }

    /// Begins it beside others, under a name of its own; it does not end.
    pub fn begin_as(self, table: &str, hosts: [&Host; 2], links: [&str; 2], only: [&str; 2]) {
        let length = match self {
            Self::Both | Self::There | Self::Back => "",
            Self::Large => "meta length > 1280 ",
        };
        for (index, host) in hosts.into_iter().enumerate() {
            // What comes in at one is what the other sends.
            if matches!((self, index), (Self::There, 0) | (Self::Back, 1)) {
                continue;
            }
            let (link, only) = (links[index], only[index]);
            host.feed(
                ["nft", "-f", "-"],
                &format!(
                    "table netdev {table} {{ chain cut {{ type filter hook ingress device {link} priority 0;\n\
                     {only} {length}drop\n}}\n}}\n"
                ),
            );
        }
    }

    /// Ends whichever there is.
    pub fn end(hosts: [&Host; 2]) {
        for host in hosts {
            host.exec(["nft", "delete", "table", "netdev", TABLE]);
        }
    }
}
