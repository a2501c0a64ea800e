//! Networks behind nodes, and who of several nodes gets the packets for one.

use std::collections::BTreeSet;

use ipnet::IpNet;
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::Stop;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::network::{Conditions, HostId};
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{Fleet, secs};

/// Returns whom a host's kernel sends what is for a network.
fn owner(world: &World, host: HostId, network: IpNet) -> Option<PublicKey> {
    let mut owners = world.host(host).kernel.peers().filter(|(_, peer)| peer.allowed_ips.contains(&network));
    let owner = owners.next().map(|(key, _)| key);
    assert!(owners.next().is_none(), "WireGuard gives a network to one peer");
    owner
}

/// Issue 4 (routes), W-D9: where two advertise one network all others give it to the same of them, whichever they met first;
/// and to the other as soon as that one says goodbye.
#[test]
fn of_two_nodes_with_one_network_all_others_take_the_same() -> Result<(), Violation> {
    let network: IpNet = "172.16.5.0/24".parse().expect("a network");
    for seed in 0..5 {
        let plan = HostPlan { accept_routes: [network].into(), ..HostPlan::default() };
        let mut fleet = Fleet::starting(seed, 4, &plan, Conditions::CLEAN)?;
        let advertising = HostPlan { advertise_routes: [network].into(), ..HostPlan::default() };
        let mut gateways = fleet.world.add_hosts(2, &advertising, fleet.lan);
        for &gateway in &gateways {
            fleet.world.start(gateway)?;
            fleet.world.run_until_meshed(secs(10))?;
            fleet.world.run_for(secs(5))?;
        }
        gateways.sort_by_key(|gateway| fleet.world.host(*gateway).public_key());
        let [lower, higher] = [0, 1].map(|place: usize| fleet.world.host(gateways[place]).public_key());
        let owners = |world: &World| -> BTreeSet<_> {
            fleet.nodes.iter().map(|&node| owner(world, node, network)).collect()
        };
        assert_eq!(owners(&fleet.world), [Some(lower)].into(), "seed {seed}");
        fleet.world.stop(gateways[0], Stop::Withdraw)?;
        fleet.world.run_for(secs(3))?;
        assert_eq!(owners(&fleet.world), [Some(higher)].into(), "seed {seed}");
    }
    Ok(())
}
