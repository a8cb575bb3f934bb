"""Who runs where: from devices and profiles to an allocation matrix, its rate and the reasons. Pure."""
