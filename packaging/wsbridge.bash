complete -W 'demo check push reload connections env version' wsbridge
